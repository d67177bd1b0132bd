"""Addition against Python's integers and against carries moved one place at a time; copy and
reverse.
"""

import numpy as np
import pytest

from dynexit.core.labels import IGNORED
from dynexit.data.tasks.addition import BLANK, PLUS, _cut, addition, longest_chain
from dynexit.data.tasks.copying import copying


def numbers(row):
    """The two numbers of an input, each as a list of digits, the lowest first."""
    tokens = row.tolist()
    blanks = tokens.index(BLANK) if BLANK in tokens else len(tokens)
    assert set(tokens[blanks:]) <= {BLANK} and tokens.count(PLUS) == 1
    return tokens[: tokens.index(PLUS)], tokens[tokens.index(PLUS) + 1 : blanks]


def value(digits):
    assert set(digits) <= set(range(10))
    return int("".join(map(str, reversed(digits))))


def rounds(one, two):
    """Adds all digits at once, then moves all carries by one place until none is left; how many
    rounds that took.
    """
    places = max(len(one), len(two)) + 1
    digits = [
        sum(number[place] for number in (one, two) if place < len(number))
        for place in range(places)
    ]
    count = 1
    while any(digit > 9 for digit in digits):
        carried = [digit // 10 for digit in digits]
        digits = [
            digit % 10 + (carried[place - 1] if place else 0) for place, digit in enumerate(digits)
        ]
        count += 1
    return count


SETTINGS = [
    {"length": 3},
    {"length": 4},
    {"length": 40},
    {"length": 41},
    {"length": 12, "carries": (0, 0)},
    {"length": 20, "carries": (2, 5)},
    {"length": 41, "carries": (0, 20)},
    {"length": 40, "carries": (19, 19)},
    {"length": 3, "carries": (1, 1)},
]


@pytest.mark.parametrize("arguments", SETTINGS)
def test_sums_and_steps(arguments):
    batch = addition(**arguments).train.batch(0, 1, 400)
    length = arguments["length"]
    assert batch["inputs"].shape == batch["labels"].shape == (400, length)
    for row, labels, steps in zip(
        batch["inputs"], batch["labels"].tolist(), batch["steps"], strict=True
    ):
        one, two = numbers(row)
        answer = labels[: labels.index(IGNORED)]
        assert set(labels[len(answer) :]) == {IGNORED}
        assert answer == [int(digit) for digit in reversed(str(value(one) + value(two)))]
        assert steps == rounds(one, two)
        for number in (one, two):
            assert len(number) == 1 or number[-1] != 0, "the highest digit is 0"


def test_lengths_are_those_of_the_published_task():
    batch = addition(20).train.batch(0, 0, 6000)
    pairs = [tuple(map(len, numbers(row))) for row in batch["inputs"]]
    first = np.bincount([one for one, _ in pairs], minlength=11)
    assert first[0] == 0 and len(first) == 11
    np.testing.assert_allclose(first[1:] / 6000, 0.1, atol=0.02)  # five standard deviations
    for one in (1, 10):
        second = np.bincount([two for number, two in pairs if number == one], minlength=20 - one)
        assert second[0] == 0 and len(second) == 20 - one and second[1:].min() > 0


@pytest.mark.parametrize("carries", [(0, 0), (0, 6), (3, 9)])
def test_the_longest_carry_is_uniform_over_its_range(carries):
    low, high = carries
    steps = addition(20, carries=carries).train.batch(0, 0, 7000)["steps"]
    found = np.bincount(steps - 1, minlength=high + 1)
    assert found[:low].sum() == 0 and len(found) == high + 1
    np.testing.assert_allclose(found[low:] / 7000, 1 / (high - low + 1), atol=0.025)


def test_only_digits_that_would_carry_too_far_are_drawn_again():
    digits = np.array(
        [[[5, 9, 9, 7, 2]], [[5, 0, 0, 8, 7]]], np.int32
    )  # carries at 0 and 3, passed on by 1, 2 and 4
    cut = digits.copy()
    _cut(np.random.default_rng(0), cut, np.array([[5], [5]]), np.array([1]))
    changed = (cut != digits).any(axis=0)[0]
    assert changed.tolist() == [False, True, False, False, True]
    assert longest_chain(digits).tolist() == [3] and longest_chain(cut).tolist() == [1]


def test_left_alone_long_carries_are_rare():
    steps = addition(40).train.batch(0, 0, 4000)["steps"]
    assert 1.5 < steps.mean() < 3 and (steps > 8).mean() < 0.01


def test_longest_chain_by_hand():
    cases = {
        (999, 1): 3,
        (1, 999): 3,
        (123, 456): 0,
        (555, 555): 1,
        (949, 61): 2,
        (5, 5): 1,
        (90, 10): 1,
        (99, 0): 0,
        (9595, 595): 2,
    }
    for (one, two), expected in cases.items():
        digits = np.array(
            [[[int(digit) for digit in f"{number:05}"[::-1]]] for number in (one, two)]
        )
        assert longest_chain(digits).tolist() == [expected], (one, two)
        assert rounds(*digits[:, 0].tolist()) == expected + 1


def test_extrapolation_is_longer_or_carries_further():
    train, calibration, test = addition(
        10, test_length=30, carries=(0, 2), test_carries=(8, 14), examples=50
    )
    assert calibration.examples()["inputs"].shape == (50, 10) and test.examples()[
        "inputs"
    ].shape == (50, 30)
    assert calibration.examples()["steps"].max() == 3 and train.examples()["steps"].max() == 3
    assert 9 <= test.examples()["steps"].min() and test.examples()["steps"].max() <= 15


@pytest.mark.parametrize("backwards", [False, True])
def test_copy_and_reverse(backwards):
    batch = copying(9, backwards=backwards).train.batch(0, 0, 900)
    for row, labels, steps in zip(
        batch["inputs"].tolist(), batch["labels"].tolist(), batch["steps"].tolist(), strict=True
    ):
        digits = [token for token in row if token < 10]
        assert row == digits + [BLANK] * (9 - steps) and len(digits) == steps
        assert labels == (digits[::-1] if backwards else digits) + [IGNORED] * (9 - steps)
    np.testing.assert_allclose(
        np.bincount(batch["steps"], minlength=10)[1:] / 900, 1 / 9, atol=0.05
    )
    assert copying(4, test_length=12, examples=5).test.examples()["inputs"].shape == (5, 12)


@pytest.mark.parametrize(
    ("task", "arguments", "text"),
    [
        (addition, {"length": 2}, "`length` must be at least 3, got 2"),
        (addition, {"length": 9, "test_length": 0}, "`test_length` must be at least 3, got 0"),
        (
            addition,
            {"length": 9, "carries": (1, 5)},
            r"`carries` must be .* \(9 tokens - 1\) // 2 = 4, got \(1, 5\)",
        ),
        (addition, {"length": 9, "carries": (3, 2)}, r"`carries` must be .* got \(3, 2\)"),
        (
            addition,
            {"length": 9, "test_carries": (-1, 2)},
            r"`test_carries` must be .* got \(-1, 2\)",
        ),
        (addition, {"length": 9, "examples": 0}, "`examples` must be at least 1, got 0"),
        (copying, {"length": 0}, "`length` must be at least 1, got 0"),
        (copying, {"length": 3, "test_length": 0}, "`test_length` must be at least 1, got 0"),
    ],
)
def test_refusals_name_the_argument(task, arguments, text):
    with pytest.raises(ValueError, match=text):
        task(**arguments)
