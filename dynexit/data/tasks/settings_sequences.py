"""Constructors of the generated tasks on sequences; JAX and numpy are not loaded before `build`."""

import dataclasses
from typing import Any, ClassVar, Literal

from dynexit.core.data import Dataset, Tokens
from dynexit.core.settings import at_least, between

DIGITS = tuple("0123456789")
BITS = ("even", "odd")

CHOMSKY_SIZES = {
    "even_pairs": (2, 2),
    "parity_check": (2, 2),
    "cycle_navigation": (3, 5),
    "modular_arithmetic": (9, 5),
    "stack_manipulation": (5, 3),
    "reverse_string": (2, 2),
    "modular_arithmetic_brackets": (11, 5),
    "solve_equation": (11, 5),
    "duplicate_string": (2, 2),
    "missing_duplicate": (4, 2),
    "odds_first": (2, 2),
    "binary_addition": (3, 3),
    "binary_multiplication": (3, 3),
    "compute_sqrt": (2, 2),
    "bucket_sort": (5, 5),
}
"""Input tokens and classes of every task of the Chomsky suite, in the order of its paper."""


@dataclasses.dataclass(frozen=True)
class Parity:
    """Vectors of {-1, 0, 1}; the label is the parity of the number of +1. See `dx.data.parity`.

    Example:
      >>> Parity(length=6, examples=20).build().test.size
      20
    """

    length: int = 8
    """entries of a vector"""
    train_nonzeros: int | None = None
    """most non-zeros in training and calibration; None: length"""
    test_nonzeros: int | None = None
    """most non-zeros in the test split; None: length. Where it exceeds train_nonzeros, the test
    split has more non-zeros than training ever has
    """
    examples: int = 5000
    """size of the calibration and of the test split; training draws new vectors without end"""

    classes: ClassVar[tuple[str, ...]] = BITS

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example."""
        return (self.length,)

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "length", "examples")
        (_, most), (_, test) = self.nonzeros()
        if not found and not 1 <= most <= test <= self.length:
            found.append(
                f"train_nonzeros and test_nonzeros must be rising in 1..{self.length}, "
                f"got {most} and {test}"
            )
        return found

    def nonzeros(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(lowest, highest) number of non-zeros of training and of the test split."""
        most, test = (
            self.length if n is None else n for n in (self.train_nonzeros, self.test_nonzeros)
        )
        return (1, most), (1 if most == test else most + 1, test)

    def build(self) -> Dataset:
        """The splits; inputs float32 `[b, length]`.

        Raises:
          ValueError: a field out of range.
        """
        from dynexit.data.tasks.parity import dataset

        return dataset(self)


@dataclasses.dataclass(frozen=True)
class PrefixSums:
    """Strings of bits; the label of each place is the parity of the ones so far.

    See `dx.data.prefix_sums`.

    Example:
      >>> PrefixSums(length=4, examples=10).build().test.examples()["labels"].shape
      (10, 4)
    """

    length: int = 32
    """bits in training and calibration"""
    test_length: int | None = None
    """bits in the test split; None: as in training"""
    examples: int = 5000
    """size of the calibration and of the test split; training draws new strings without end"""

    classes: ClassVar[tuple[str, ...]] = BITS

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example in training."""
        return (self.length, 1)

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return at_least(self, 1, "length", "examples") + _optional(self, 1, "test_length")

    def build(self) -> Dataset:
        """The splits; inputs float32 `[b, length, 1]` of -0.5 and 0.5.

        Raises:
          ValueError: a field out of range.
        """
        from dynexit.data.tasks.prefix_sums import dataset

        return dataset(self)


@dataclasses.dataclass(frozen=True)
class Addition:
    """Two decimal numbers, the lowest digit first, and their sum. See `dx.data.addition`.

    Example:
      >>> Addition(length=12, carries=(3, 3), examples=2).build().test.examples()["steps"].tolist()
      [4, 4]
    """

    length: int = 40
    """tokens of an example in training and calibration"""
    test_length: int | None = None
    """tokens in the test split; None: as in training"""
    carries: tuple[int, int] | None = None
    """lowest and highest longest carry chain in training and calibration; None: as they fall"""
    test_carries: tuple[int, int] | None = None
    """the same of the test split; None: as in training"""
    examples: int = 5000
    """size of the calibration and of the test split; training draws new numbers without end"""

    classes: ClassVar[tuple[str, ...]] = DIGITS

    @property
    def inputs(self) -> Tokens:
        """Ten digits, plus and blank."""
        return Tokens(12, _fixed(self.length, self.test_length))

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 3, "length") + _optional(self, 3, "test_length")
        found += at_least(self, 1, "examples")
        tokens = {"carries": self.length, "test_carries": self.test_length or self.length}
        for name, length in tokens.items():
            pair, most = getattr(self, name), (length - 1) // 2
            if pair is not None and not 0 <= pair[0] <= pair[1] <= most:
                found.append(f"{name} must be rising in 0..{most}, got {pair}")
        return found

    def build(self) -> Dataset:
        """The splits; inputs int32 `[b, length]`, labels `[b, length]`.

        Raises:
          ValueError: a field out of range.
        """
        from dynexit.data.tasks.addition import dataset

        return dataset(self)


@dataclasses.dataclass(frozen=True)
class Copying:
    """Strings of decimal digits to write again, or to reverse. See `dx.data.copying`.

    Example:
      >>> Copying(length=4, backwards=True, examples=3).build().inputs
      Tokens(vocabulary=12, length=4)
    """

    length: int = 8
    """most digits of a string in training and calibration"""
    test_length: int | None = None
    """most digits in the test split; None: as in training"""
    backwards: bool = False
    """reverse the string"""
    shift: int = 0
    """positions in training begin at 0..shift, at random; above 0 a training input is a dict of
    tokens and positions
    """
    examples: int = 5000
    """size of the calibration and of the test split; training draws new strings without end"""

    classes: ClassVar[tuple[str, ...]] = DIGITS

    @property
    def inputs(self) -> Tokens:
        """Ten digits, plus (which does not occur) and blank."""
        return Tokens(12, _fixed(self.length, self.test_length))

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "length", "examples") + _optional(self, 1, "test_length")
        return found + between(self, 0, 2**30, "shift")

    def build(self) -> Dataset:
        """The splits; inputs int32 `[b, length]`, labels `[b, length]`.

        Raises:
          ValueError: a field out of range.
        """
        from dynexit.data.tasks.copying import dataset

        return dataset(self)


@dataclasses.dataclass(frozen=True)
class Chomsky:
    """A task of the Chomsky suite: short strings in training, longer ones in the test split.

    See `dx.data.chomsky`.

    Example:
      >>> Chomsky(task="reverse_string", length=4, test_length=6, examples=8).build().inputs
      Tokens(vocabulary=4, length=None)
    """

    task: Literal[
        "even_pairs",
        "parity_check",
        "cycle_navigation",
        "modular_arithmetic",
        "stack_manipulation",
        "reverse_string",
        "modular_arithmetic_brackets",
        "solve_equation",
        "duplicate_string",
        "missing_duplicate",
        "odds_first",
        "binary_addition",
        "binary_multiplication",
        "compute_sqrt",
        "bucket_sort",
    ] = "parity_check"
    """one of the fifteen of `dynexit.data.tasks.chomsky.TASKS`"""
    length: int = 20
    """tokens at most in training and calibration"""
    test_length: int = 60
    """tokens at most in the test split, whose strings are all longer than those of training"""
    examples: int = 400
    """size of the calibration and of the test split; training draws new strings without end"""
    one_hot: bool = False
    """inputs are one-hot vectors in place of token ids"""

    @property
    def inputs(self) -> Tokens | tuple[int, ...]:
        """The task's tokens, the empty token and the padding; one-hot, the shape in training."""
        vocabulary = CHOMSKY_SIZES[self.task][0] + 2
        if not self.one_hot:
            return Tokens(vocabulary)
        from dynexit.data.tasks.chomsky import TASKS

        return (self.length + TASKS[self.task].output_length(self.length), vocabulary)

    @property
    def classes(self) -> tuple[str, ...]:
        """The tokens of an answer."""
        return tuple(map(str, range(CHOMSKY_SIZES[self.task][1])))

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "length", "examples")
        if not self.test_length > self.length:
            found.append(f"test_length must exceed length {self.length}, got {self.test_length}")
        return found

    def build(self) -> Dataset:
        """The splits, with label -1 at all places but those of the answer.

        Inputs are int32 `[b, width]` or float32 `[b, width, vocabulary]`, labels `[b, width]`.

        Raises:
          ValueError: a field out of range.
        """
        from dynexit.data.tasks.chomsky import dataset

        return dataset(self)


def _optional(settings: Any, low: int, name: str) -> list[str]:
    return [] if getattr(settings, name) is None else at_least(settings, low, name)


def _fixed(length: int, test_length: int | None) -> int | None:
    """The length of every example, or None where the test split has another."""
    return length if test_length in (None, length) else None
