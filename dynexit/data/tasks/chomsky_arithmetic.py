"""The Chomsky suite, tasks on numbers.

Each is a function `(random, size, length) -> (inputs [b, l], targets [b, T])`, int32.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

from dynexit.data.host_shapes import Int
from dynexit.data.tasks.chomsky_strings import Drawn

MODULUS = 5
"""Of all values of expressions."""

FLAT = {**{str(digit): digit for digit in range(MODULUS)}, "+": 5, "-": 6, "*": 7}
"""Tokens of `modular_arithmetic`; 8 is a blank, which is never drawn."""

BRACKETED = {**FLAT, "(": 8, ")": 9}
"""Tokens of `modular_arithmetic_brackets`; 10 is never drawn."""

EQUATION = {
    **{str(digit): digit for digit in range(MODULUS)},
    "+": 5,
    "-": 6,
    "(": 7,
    ")": 8,
    "x": 9,
    "=": 10,
}
"""Tokens of `solve_equation`."""


def modular_arithmetic(random: np.random.Generator, size: int, length: int) -> Drawn:
    """Digits 0..4 joined by +, * and -, products first; the value modulo 5. T = 1.

    The inputs are one token shorter where `length` is even, as in the released code.

    Example:
      >>> inputs, targets = modular_arithmetic(np.random.default_rng(0), 1, 6)
      >>> "".join("01234+-*"[token] for token in inputs[0]), targets[0].tolist()
      ('4+2+1', [2])
    """
    length -= 1 - length % 2
    inputs = random.integers(0, MODULUS, size=(size, length), dtype=np.int32)
    inputs[:, 1::2] = random.integers(
        FLAT["+"], FLAT["*"] + 1, size=(size, length // 2), dtype=np.int32
    )
    return inputs, flat_values(inputs)[:, None]


def flat_values(expressions: Int[np.ndarray, "b l"]) -> Int[np.ndarray, "b"]:
    """Values modulo 5 of expressions without brackets.

    Each product is reduced at once. The released code multiplies first, and long runs of `*`
    overflow its int32.

    Args:
      expressions: tokens of FLAT, int32 `[b, l]`, l odd: digit, operator, digit ...

    Returns:
      int32 `[b]` in 0..4.

    Example:
      >>> texts = ("1+2-4", "1+2*3", "0*1+4*3-2")
      >>> [int(flat_values(np.array([[FLAT[c] for c in text]]))[0]) for text in texts]
      [4, 2, 0]
    """
    total, term = np.zeros(len(expressions), np.int32), expressions[:, 0].astype(np.int32)
    for operator, digit in zip(expressions[:, 1::2].T, expressions[:, 2::2].T, strict=True):
        times = operator == FLAT["*"]
        total = np.where(times, total, total + term)
        term = (
            np.where(times, term * digit, np.where(operator == FLAT["-"], -digit, digit)) % MODULUS
        )
    return ((total + term) % MODULUS).astype(np.int32)


def modular_arithmetic_brackets(random: np.random.Generator, size: int, length: int) -> Drawn:
    """An expression of digits 0..4 with brackets; the value modulo 5. T = 1.

    It has minus signs and the operators +, -, *.

    G(1) = d, G(2) = -d, G(3) = (d), G(4) = (-d), G(l) = (G(a) op G(l - a - 3)) with a ~ U{1..l -
    4}.

    Example:
      >>> inputs, targets = modular_arithmetic_brackets(np.random.default_rng(0), 1, 6)
      >>> "".join("01234+-*()"[token] for token in inputs[0]), targets[0].tolist()
      ('(-3+2)', [4])
    """
    inputs, targets = np.empty((size, length), np.int32), np.empty((size, 1), np.int32)
    for row in range(size):
        text, targets[row, 0] = _expression(random, length, "+-*")
        inputs[row] = [BRACKETED[symbol] for symbol in text]
    return inputs, targets


def _expression(random: np.random.Generator, length: int, operators: str) -> tuple[str, int]:
    """An expression of `length` symbols and its value in 0..4."""
    if length < 5:
        digit = int(random.integers(MODULUS))
        return {1: f"{digit}", 2: f"-{digit}", 3: f"({digit})", 4: f"(-{digit})"}[length], digit * (
            -1
        ) ** (length + 1) % MODULUS
    split = int(random.integers(1, length - 3))
    left, one = _expression(random, split, operators)
    right, two = _expression(random, length - split - 3, operators)
    operator = operators[random.integers(len(operators))]
    return f"({left}{operator}{right})", {"+": one + two, "-": one - two, "*": one * two}[
        operator
    ] % MODULUS


def solve_equation(random: np.random.Generator, size: int, length: int) -> Drawn:
    """An equation with one digit replaced by x; that digit. T = 1.

    It is an expression of l - 2 symbols without `*`, then = and its value.

    The digit is the first at or after a random place, going round. Below three tokens all is 0.

    Example:
      >>> inputs, targets = solve_equation(np.random.default_rng(0), 1, 7)
      >>> "".join("01234+-()x="[token] for token in inputs[0]), targets[0].tolist()
      ('(x-3)=1', [4])
    """
    inputs, targets = np.zeros((size, length), np.int32), np.zeros((size, 1), np.int32)
    if length < 3:
        return inputs, targets
    for row in range(size):
        text, value = _expression(random, length - 2, "+-")
        place = int(random.integers(length - 2))
        while not text[place].isdigit():
            place = (place + 1) % (length - 2)
        inputs[row] = [EQUATION[symbol] for symbol in f"{text[:place]}x{text[place + 1 :]}={value}"]
        targets[row, 0] = int(text[place])
    return inputs, targets


def binary_addition(random: np.random.Generator, size: int, length: int) -> Drawn:
    """Two numbers, the lowest bit first, with 2 between; their sum. T = l + 1.

    The sum has the lowest bit first, then 2, then 0.

    n ~ U{1..l - 2} bits and l - 1 - n bits; numbers U{1..2^n - 1}. Below three tokens one number
    U{0..2^l - 1}, no separator (the released code leaves out the largest).

    Example:
      >>> inputs, targets = binary_addition(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([1, 1, 1, 1, 2, 1], [0, 0, 0, 0, 1, 2, 0])
    """
    if length < 3:
        numbers = random.integers(0, 2**length, size=size).tolist()
        return _rows([_binary(number, length) for number in numbers]), _ended(
            map(_binary, numbers), size, length + 1
        )
    return _two_numbers(random, size, length, lambda one, two: one + two, length + 1)


def binary_multiplication(random: np.random.Generator, size: int, length: int) -> Drawn:
    """As `binary_addition`, with the product. T = l.

    Below three tokens the product is l - 1 zeros, as in the released code.

    Example:
      >>> inputs, targets = binary_multiplication(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([1, 1, 1, 1, 2, 1], [1, 1, 1, 1, 2, 0])
    """
    if length < 3:
        numbers = random.integers(0, 2**length, size=size).tolist()
        return _rows([_binary(number, length) for number in numbers]), _ended(
            [[0] * (length - 1)] * size, size, length
        )
    return _two_numbers(random, size, length, lambda one, two: one * two, length)


def compute_sqrt(random: np.random.Generator, size: int, length: int) -> Drawn:
    """A number U{1..2^l - 1}; the integer part of its square root. T = ceil(l / 2).

    Both have the highest bit first.

    Example:
      >>> inputs, targets = compute_sqrt(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([0, 1, 1, 1, 1, 1], [1, 0, 1])
    """
    numbers = [_positive(random, length) for _ in range(size)]
    inputs = [_binary(number, length)[::-1] for number in numbers]
    return _rows(inputs), _rows(
        [_binary(math.isqrt(number), (length + 1) // 2)[::-1] for number in numbers]
    )


def _two_numbers(
    random: np.random.Generator,
    size: int,
    length: int,
    combine: Callable[[int, int], int],
    target_length: int,
) -> Drawn:
    inputs, results = [], []
    for bits in random.integers(1, length - 1, size=size).tolist():
        one, two = _positive(random, bits), _positive(random, length - 1 - bits)
        inputs.append([*_binary(one, bits), 2, *_binary(two, length - 1 - bits)])
        results.append(_binary(combine(one, two)))
    return _rows(inputs), _ended(results, size, target_length)


def _positive(random: np.random.Generator, bits: int) -> int:
    """U{1..2^bits - 1}, however large."""
    number = 0
    while number == 0:
        number = int.from_bytes(random.bytes((bits + 7) // 8), "little") % 2**bits
    return number


def _binary(number: int, bits: int = 1) -> list[int]:
    """The bits of a number, the lowest first, filled up with 0 to `bits`."""
    return [int(bit) for bit in reversed(f"{number:0{bits}b}")]


def _rows(lists: list[list[int]]) -> np.ndarray:
    return np.array(lists, np.int32)


def _ended(results: Iterable[list[int]], size: int, length: int) -> np.ndarray:
    """Rows of bits, each followed by 2 and filled up with 0, int32 `[size, length]`."""
    targets = np.zeros((size, length), np.int32)
    for row, bits in enumerate(results):
        targets[row, : len(bits) + 1] = [*bits, 2]
    return targets
