"""The tasks on numbers against Python's integers and its own evaluation of expressions."""

import math
import re

import numpy as np
import pytest

from dynexit.data.tasks import chomsky_arithmetic as arithmetic

LENGTHS = [1, 2, 3, 4, 5, 8, 21, 40, 500]


def drawn(task, length, size=60, seed=0):
    inputs, targets = task(np.random.default_rng([seed, length]), size, length)
    assert inputs.dtype == targets.dtype == np.int32
    return inputs.tolist(), targets.tolist()


def text(tokens, alphabet):
    symbols = {token: symbol for symbol, token in alphabet.items()}
    return "".join(symbols[token] for token in tokens)


def low_first(bits):
    return sum(bit << place for place, bit in enumerate(bits))


def bits_of(number):
    return [int(bit) for bit in bin(number)[:1:-1]]


@pytest.mark.parametrize("length", LENGTHS)
def test_flat_expressions(length):
    inputs, targets = drawn(arithmetic.modular_arithmetic, length)
    for tokens, (target,) in zip(inputs, targets, strict=True):
        expression = text(tokens, arithmetic.FLAT)
        assert len(expression) == length - (length % 2 == 0)
        assert re.fullmatch(r"[0-4]([-+*][0-4])*", expression)
        assert target == eval(expression) % 5


def test_flat_expressions_of_the_paper():
    for expression, value in {
        "1+2-4": 4,
        "1+2*3": 2,
        "0*1+4*3-2": 0,
        "1-1-1": 4,
        "2-3*4*4": 4,
        "3": 3,
    }.items():
        assert eval(expression) % 5 == value
        assert arithmetic.flat_values(
            np.array([[arithmetic.FLAT[symbol] for symbol in expression]])
        ).tolist() == [value]


def test_a_long_run_of_products_does_not_overflow():
    expression = "*".join("4" * 251)
    assert arithmetic.flat_values(
        np.array([[arithmetic.FLAT[symbol] for symbol in expression]])
    ).tolist() == [eval(expression) % 5]


def test_operators_are_drawn_alike():
    inputs, _ = drawn(arithmetic.modular_arithmetic, 11, 3000)
    operators = np.bincount(np.array(inputs)[:, 1::2].ravel())[5:]
    np.testing.assert_allclose(operators / 15_000, 1 / 3, atol=0.02)
    found = "".join(
        text(tokens, arithmetic.BRACKETED)
        for tokens in drawn(arithmetic.modular_arithmetic_brackets, 5, 3000)[0]
    )
    np.testing.assert_allclose([found.count(symbol) / 3000 for symbol in "+-*"], 1 / 3, atol=0.045)


@pytest.mark.parametrize("length", LENGTHS)
def test_expressions_in_brackets(length):
    for seed in range(4):
        inputs, targets = drawn(arithmetic.modular_arithmetic_brackets, length, seed=seed)
        for tokens, (target,) in zip(inputs, targets, strict=True):
            expression = text(tokens, arithmetic.BRACKETED)
            assert len(expression) == length and target == eval(expression) % 5


def grammar(expression):
    """Whether an expression is of the grammar: reduces every innermost bracket to the letter g,
    with the digits it may hold.
    """
    while True:
        smaller = re.sub(r"\(-?[0-4]\)|\((?:-?[0-4]|g)[-+*](?:-?[0-4]|g)\)", "g", expression)
        if smaller == expression:
            return re.fullmatch(r"-?[0-4]|g", expression) is not None
        expression = smaller


def test_brackets_are_of_the_grammar():
    assert (
        grammar("((3)+-2)")
        and grammar("-4")
        and not grammar("(3+2")
        and not grammar("3+2")
        and not grammar("-(3)")
    )
    for length in (1, 2, 3, 4, 6, 13, 30):
        for tokens in drawn(arithmetic.modular_arithmetic_brackets, length)[0]:
            assert grammar(text(tokens, arithmetic.BRACKETED))


def test_expressions_are_split_anywhere():
    found = [
        text(tokens, arithmetic.BRACKETED)[1]
        for tokens in drawn(arithmetic.modular_arithmetic_brackets, 7, 3000)[0]
    ]
    shares = [
        sum(symbol in kind for symbol in found) / 3000 for kind in ("01234", "-", "(")
    ]  # (d+(d)), (-d+-d), ((d)+d)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.045)


@pytest.mark.parametrize("length", LENGTHS)
def test_equations(length):
    inputs, targets = drawn(arithmetic.solve_equation, length)
    for tokens, (target,) in zip(inputs, targets, strict=True):
        if length < 3:
            assert tokens == [0] * length and target == 0
            continue
        left, right = text(tokens, arithmetic.EQUATION).split("=")
        assert len(left) == length - 2 and left.count("x") == 1 and "*" not in left
        assert [
            digit for digit in range(5) if eval(left.replace("x", str(digit))) % 5 == int(right)
        ] == [target]


def test_the_unknown_may_be_any_digit_of_the_expression():
    places = [
        text(tokens, arithmetic.EQUATION).index("x")
        for tokens in drawn(arithmetic.solve_equation, 7, 2000)[0]
    ]
    assert set(places) == {1, 3}  # (d+d): the first follows "(" and ")" goes round to it
    np.testing.assert_allclose(places.count(1) / 2000, 3 / 5, atol=0.06)


@pytest.mark.parametrize("length", [3, 4, 5, 8, 21, 40, 300, 500])
@pytest.mark.parametrize(
    ("task", "combine"), [("addition", int.__add__), ("multiplication", int.__mul__)]
)
def test_binary_numbers(task, combine, length):
    inputs, targets = drawn(getattr(arithmetic, f"binary_{task}"), length)
    for tokens, target in zip(inputs, targets, strict=True):
        assert len(tokens) == length and tokens.count(2) == 1
        one, two = low_first(tokens[: tokens.index(2)]), low_first(tokens[tokens.index(2) + 1 :])
        assert one > 0 and two > 0
        answer = [*bits_of(combine(one, two)), 2]
        assert target == answer + [0] * (length + (task == "addition") - len(answer))


def test_published_examples_of_binary_numbers():
    assert bits_of(4 + 22) == [0, 1, 0, 1, 1] and low_first([0, 1, 1, 0, 1]) == 22


def test_numbers_have_any_length_and_any_value():
    inputs, _ = drawn(arithmetic.binary_addition, 6, 8000)
    lengths = np.bincount([tokens.index(2) for tokens in inputs], minlength=6)
    np.testing.assert_allclose(lengths / 8000, [0, *[0.25] * 4, 0], atol=0.025)
    firsts = [low_first(tokens[:3]) for tokens in inputs if tokens[3] == 2]
    np.testing.assert_allclose(
        np.bincount(firsts, minlength=8) / len(firsts), [0, *[1 / 7] * 7], atol=0.05
    )


def test_short_strings_hold_one_number():
    for length in (1, 2):
        for tokens, target in zip(*drawn(arithmetic.binary_addition, length), strict=True):
            answer = [*(bits_of(low_first(tokens)) or [0]), 2]
            assert set(tokens) <= {0, 1} and target == answer + [0] * (length + 1 - len(answer))
        for tokens, target in zip(*drawn(arithmetic.binary_multiplication, length), strict=True):
            assert set(tokens) <= {0, 1} and target == [0] * (length - 1) + [2]


@pytest.mark.parametrize("length", [*LENGTHS, 301])
def test_square_roots(length):
    for tokens, target in zip(*drawn(arithmetic.compute_sqrt, length), strict=True):
        number, root = low_first(tokens[::-1]), low_first(target[::-1])
        assert number > 0 and len(tokens) == length and len(target) == math.ceil(length / 2)
        assert root * root <= number < (root + 1) ** 2
