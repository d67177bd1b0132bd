"""The Chomsky suite, tasks on strings.

Each is a function `(random, size, length) -> (inputs [b, l], targets [b, T])`, int32.
"""

from typing import TypeAlias

import numpy as np

from dynexit.data.host_shapes import Int

Drawn: TypeAlias = tuple[Int[np.ndarray, "b l"], Int[np.ndarray, "b T"]]


def _bits(random: np.random.Generator, size: int, length: int) -> np.ndarray:
    return random.integers(0, 2, size=(size, length), dtype=np.int32)


def even_pairs(random: np.random.Generator, size: int, length: int) -> Drawn:
    """Bits; 1 where the number of neighbours 01 and 10 is odd. T = 1.

    It is odd where the first bit is not the last.

    Example:
      >>> inputs, targets = even_pairs(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([1, 1, 1, 0, 0, 0], [1])
    """
    bits = _bits(random, size, length)
    return bits, bits[:, :1] ^ bits[:, -1:]


def parity_check(random: np.random.Generator, size: int, length: int) -> Drawn:
    """Bits; 1 where the number of ones is odd. T = 1.

    Example:
      >>> inputs, targets = parity_check(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([1, 1, 1, 0, 0, 0], [1])
    """
    bits = _bits(random, size, length)
    return bits, np.bitwise_xor.reduce(bits, axis=1)[:, None]


def cycle_navigation(random: np.random.Generator, size: int, length: int) -> Drawn:
    """Moves on a ring of five, tokens 0, 1, 2 for -1, 0, +1; where one ends that began at 0. T = 1.

    Example:
      >>> inputs, targets = cycle_navigation(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([2, 1, 1, 0, 0, 0], [3])
    """
    moves = random.integers(0, 3, size=(size, length), dtype=np.int32)
    return moves, ((moves - 1).sum(axis=1, keepdims=True) % 5).astype(np.int32)


def reverse_string(random: np.random.Generator, size: int, length: int) -> Drawn:
    """Bits, and the same from the last to the first. T = l.

    Example:
      >>> inputs, targets = reverse_string(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1])
    """
    bits = _bits(random, size, length)
    return bits, bits[:, ::-1].copy()


def stack_manipulation(random: np.random.Generator, size: int, length: int) -> Drawn:
    """A stack of bits, the bottom first, and actions; the resulting stack. T = l + 1.

    The result has the top first, then 2, then 0.

    U{1..l - 1} bits, then actions drawn alike: 2 pops (an empty stack stays so), 3 pushes 0, 4
    pushes 1. One token is a bit.

    Example:
      >>> inputs, targets = stack_manipulation(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([0, 0, 1, 1, 1, 2], [1, 1, 0, 0, 2, 0, 0])
    """
    height = random.integers(1, max(length, 2), size=(size, 1))
    actions = random.integers(2, 5, size=(size, length), dtype=np.int32)
    inputs = np.where(np.arange(length) < height, _bits(random, size, length), actions)
    return inputs, _left_on_stack(inputs)


def _left_on_stack(inputs: np.ndarray) -> np.ndarray:
    size, length = inputs.shape
    rows, height = np.arange(size), np.zeros(size, np.int64)
    stack = np.zeros((size, length + 1), np.int32)
    for token in inputs.T:
        pops = token == 2
        stack[rows, height] = np.where(token < 2, token, token - 3)  # above the top nothing is read
        height = np.maximum(height + np.where(pops, -1, 1), 0)
    place, top = np.arange(length + 1), height[:, None]
    read = np.take_along_axis(stack, np.maximum(top - 1 - place, 0), axis=1)
    return np.where(place < top, read, np.where(place == top, 2, 0)).astype(np.int32)


def duplicate_string(random: np.random.Generator, size: int, length: int) -> Drawn:
    """Bits, and the same twice. T = 2 l.

    Example:
      >>> inputs, targets = duplicate_string(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0])
    """
    bits = _bits(random, size, length)
    return bits, np.concatenate([bits, bits], axis=1)


def missing_duplicate(random: np.random.Generator, size: int, length: int) -> Drawn:
    """l // 2 bits twice, one place replaced by 2; the missing bit. T = 1.

    A last 3 is added where l is odd; the answer is 1 where l = 1.

    Example:
      >>> inputs, targets = missing_duplicate(np.random.default_rng(0), 1, 5)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([1, 1, 2, 1, 3], [1])
    """
    if length == 1:
        return np.ones((size, 1), np.int32), np.ones((size, 1), np.int32)
    half = _bits(random, size, length // 2)
    inputs = np.concatenate([half, half, np.full((size, length % 2), 3, np.int32)], axis=1)
    place = random.integers(0, 2 * (length // 2), size=(size, 1))
    missing = np.take_along_axis(inputs, place, axis=1)
    np.put_along_axis(inputs, place, np.int32(2), axis=1)
    return inputs, missing


def odds_first(random: np.random.Generator, size: int, length: int) -> Drawn:
    """Bits; those at places 1, 3, 5 ... and then those at 0, 2, 4 .... T = l.

    Places count from 0, as in the released code.

    Example:
      >>> inputs, targets = odds_first(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 1, 0])
    """
    bits = _bits(random, size, length)
    return bits, np.concatenate([bits[:, 1::2], bits[:, ::2]], axis=1)


def bucket_sort(random: np.random.Generator, size: int, length: int) -> Drawn:
    """Tokens 0..4, and the same in order. T = l.

    Example:
      >>> inputs, targets = bucket_sort(np.random.default_rng(0), 1, 6)
      >>> inputs[0].tolist(), targets[0].tolist()
      ([4, 3, 2, 1, 1, 0], [0, 1, 1, 2, 3, 4])
    """
    tokens = random.integers(0, 5, size=(size, length), dtype=np.int32)
    return tokens, np.sort(tokens, axis=1)
