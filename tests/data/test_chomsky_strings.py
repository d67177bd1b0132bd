"""The tasks on strings, each against a loop over its tokens."""

import itertools

import numpy as np
import pytest

from dynexit.data.tasks import chomsky_strings as strings

LENGTHS = [1, 2, 3, 4, 7, 20, 41, 500]


def drawn(task, length, size=60):
    inputs, targets = task(np.random.default_rng(length), size, length)
    assert inputs.dtype == targets.dtype == np.int32 and inputs.shape == (size, length)
    return inputs.tolist(), targets.tolist()


def even_pairs(tokens):
    return [sum(one != two for one, two in itertools.pairwise(tokens)) % 2]


def parity_check(tokens):
    return [tokens.count(1) % 2]


def cycle_navigation(tokens):
    place = 0
    for token in tokens:
        place = {0: (place + 4) % 5, 1: place, 2: (place + 1) % 5}[token]
    return [place]


def stack_manipulation(tokens):
    stack = []
    for token in tokens:
        if token != 2:
            stack.append({0: 0, 1: 1, 3: 0, 4: 1}[token])
        elif stack:
            stack.pop()
    answer = [*reversed(stack), 2]
    return answer + [0] * (len(tokens) + 1 - len(answer))


def missing_duplicate(tokens):
    if len(tokens) == 1:
        return [1]
    half = len(tokens) // 2
    place = tokens.index(2)
    return [tokens[place - half if place >= half else place + half]]


ORACLES = {
    strings.even_pairs: even_pairs,
    strings.parity_check: parity_check,
    strings.cycle_navigation: cycle_navigation,
    strings.stack_manipulation: stack_manipulation,
    strings.reverse_string: lambda tokens: tokens[::-1],
    strings.duplicate_string: lambda tokens: tokens * 2,
    strings.missing_duplicate: missing_duplicate,
    strings.odds_first: lambda tokens: (
        [t for k, t in enumerate(tokens) if k % 2] + [t for k, t in enumerate(tokens) if not k % 2]
    ),
    strings.bucket_sort: lambda tokens: [
        bucket for bucket in range(5) for _ in range(tokens.count(bucket))
    ],
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("task", ORACLES, ids=lambda task: task.__name__)
def test_targets(task, length):
    for tokens, targets in zip(*drawn(task, length), strict=True):
        assert targets == ORACLES[task](tokens)


def test_even_pairs_is_first_against_last_for_ten_thousand_strings():
    for tokens, (target,) in zip(*drawn(strings.even_pairs, 30, 10_000), strict=True):
        assert target == (tokens[0] != tokens[-1])


def test_tokens_are_drawn_alike():
    for task, tokens in (
        (strings.parity_check, 2),
        (strings.cycle_navigation, 3),
        (strings.bucket_sort, 5),
    ):
        inputs, _ = drawn(task, 10, 4000)
        np.testing.assert_allclose(
            np.bincount(np.ravel(inputs)) / 40_000, 1 / tokens, atol=0.013
        )  # five standard deviations


def test_a_stack_has_any_height_and_then_only_actions():
    inputs, _ = drawn(strings.stack_manipulation, 6, 6000)
    heights = []
    for tokens in inputs:
        height = sum(token < 2 for token in tokens)
        assert max(tokens[:height]) < 2 and min(tokens[height:]) >= 2
        heights.append(height)
    np.testing.assert_allclose(
        np.bincount(heights, minlength=7) / 6000, [0, *[0.2] * 5, 0], atol=0.026
    )
    actions = [token for tokens in inputs for token in tokens if token >= 2]
    np.testing.assert_allclose(np.bincount(actions)[2:] / len(actions), 1 / 3, atol=0.02)


def test_stacks_of_the_published_examples():
    found = strings._left_on_stack(
        np.array([[0, 1, 1, 0, 4, 2, 2], [1, 1, 0, 2, 2, 2, 2]], np.int32)
    )
    assert found.tolist() == [[1, 1, 0, 2, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("length", [2, 9, 10])
def test_the_missing_token_is_anywhere_in_a_string_written_twice(length):
    inputs, targets = drawn(strings.missing_duplicate, length, 3000)
    half, places = length // 2, []
    for tokens, (target,) in zip(inputs, targets, strict=True):
        assert tokens.count(2) == 1 and tokens[2 * half :] == [3] * (length % 2)
        assert tokens.count(1) % 2 == target, "every bit comes twice: what is left tells the parity"
        places.append(tokens.index(2))
        tokens[places[-1]] = target
        assert tokens[:half] == tokens[half : 2 * half] and set(tokens[:half]) <= {0, 1}
    np.testing.assert_allclose(
        np.bincount(places, minlength=2 * half) / 3000, 1 / (2 * half), atol=0.05
    )
    np.testing.assert_allclose(np.mean(targets), 0.5, atol=0.05)
