"""Constructors of the generated tasks; neither JAX nor numpy is loaded before `build`."""

import dataclasses
from typing import ClassVar, Literal

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
        from dynexit.data.tasks.datasets import parity_dataset

        return parity_dataset(self)


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
        from dynexit.data.tasks.datasets import prefix_sums_dataset

        return prefix_sums_dataset(self)


@dataclasses.dataclass(frozen=True)
class Mazes:
    """Images of mazes; the label of each free pixel is whether it lies on the shortest path.

    See `dx.data.mazes`.

    Example:
      >>> data = Mazes(size=5, examples=4).build()
      >>> data.inputs == data.test.examples()["inputs"].shape[1:]
      True
    """

    size: int = 9
    """of the mazes in training and calibration, odd"""
    test_size: int | None = None
    """of those in the test split, odd; None: as in training"""
    scale: int = 1
    """pixels a place is wide"""
    loops: float = 0.0
    """fraction of closed walls to open"""
    examples: int = 1000
    """size of the calibration and of the test split; training draws new mazes without end"""

    classes: ClassVar[tuple[str, ...]] = ("off the way", "on the way")

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example in training."""
        side = self.scale * (self.size + 2) + 2 * (self.scale - 1)
        return (side, side, 3)

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "scale", "examples") + between(self, 0.0, 1.0, "loops")
        for name in ("size", "test_size"):
            value = getattr(self, name)
            if value is not None and (value < 3 or value % 2 == 0):
                found.append(f"{name} must be odd and at least 3, got {value}")
        return found

    def build(self) -> Dataset:
        """The splits; inputs float32 `[b, side, side, 3]` of 0 and 1; walls have the label -1.

        Raises:
          ValueError: a field out of range.
        """
        from dynexit.data.tasks.datasets import mazes_dataset

        return mazes_dataset(self)


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
        from dynexit.data.tasks.datasets import addition_dataset

        return addition_dataset(self)


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
        from dynexit.data.tasks.datasets import copying_dataset

        return copying_dataset(self)


@dataclasses.dataclass(frozen=True)
class Sudoku:
    """Sudoku that naked singles solve, with 4x4 or 9x9 places. See `dx.data.sudoku`.

    Example:
      >>> data = Sudoku(fewest=5, most=6, examples=3).build()
      >>> data.inputs, len(data.classes)
      (Tokens(vocabulary=5, length=16), 4)
    """

    box: Literal[2, 3] = 2
    """side of a box: grids of 4x4 or 9x9 places"""
    fewest: int = 4
    """digits given, at least; 26 or more of 9x9"""
    most: int = 6
    """digits given, at most"""
    examples: int = 2000
    """size of the calibration and of the test split; training draws new puzzles without end"""

    @property
    def inputs(self) -> Tokens:
        """The digits, and 0 for an empty place."""
        return Tokens(self.box**2 + 1, self.box**4)

    @property
    def classes(self) -> tuple[str, ...]:
        """The digits."""
        return tuple(map(str, range(1, self.box**2 + 1)))

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        low, places = {2: 4, 3: 26}[self.box], self.box**4
        found = at_least(self, 1, "examples") + at_least(self, low, "fewest")
        if not self.fewest <= self.most <= places:
            found.append(f"most must lie in {self.fewest}..{places}, got {self.most}")
        return found

    def build(self) -> Dataset:
        """The splits; inputs int8 `[b, places]`, labels `[b, places]`.

        Raises:
          ValueError: a field out of range.
        """
        from dynexit.data.tasks.datasets import sudoku_dataset

        return sudoku_dataset(self)


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
        from dynexit.data.tasks.datasets import chomsky_dataset

        return chomsky_dataset(self)


@dataclasses.dataclass(frozen=True)
class Graphs:
    """Random graphs and what a graph algorithm finds in them. See `dx.data.graphs`.

    Example:
      >>> Graphs(algorithm="bellman_ford", nodes=4, examples=3).build().inputs
      (4, 4, 2)
    """

    algorithm: Literal["breadth_first", "bellman_ford", "floyd_warshall"] = "breadth_first"
    """breadth-first search, shortest paths from one node, or shortest paths of all pairs"""
    nodes: int = 16
    """in training and calibration"""
    test_nodes: int | None = None
    """in the test split; None: as in training"""
    family: Literal["erdos_renyi", "paths", "grids"] = "erdos_renyi"
    """which nodes are joined"""
    probability: float = 0.5
    """p of `erdos_renyi`, which joins two nodes with the chance p^2"""
    hints: bool = False
    """whether batches hold the predecessors at the beginning of each round"""
    examples: int = 1000
    """size of the calibration and of the test split; training draws new graphs without end"""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example in training."""
        return (self.nodes, self.nodes, 2)

    @property
    def classes(self) -> tuple[str, ...]:
        """The nodes, of the larger of the two kinds of graphs."""
        return tuple(map(str, range(max(self.nodes, self.test_nodes or 0))))

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 2, "nodes") + _optional(self, 2, "test_nodes")
        return found + between(self, 0.0, 1.0, "probability") + at_least(self, 1, "examples")

    def build(self) -> Dataset:
        """The splits, inputs float32 `[b, n, n, 2]`, labels int32.

        Labels are `[b, n]`, or `[b, n, n]` for all pairs.

        Raises:
          ValueError: a field out of range.
        """
        from dynexit.data.tasks.datasets import graphs_dataset

        return graphs_dataset(self)


def _optional(settings, low: int, name: str) -> list[str]:
    return [] if getattr(settings, name) is None else at_least(settings, low, name)


def _fixed(length: int, test_length: int | None) -> int | None:
    """The length of every example, or None where the test split has another."""
    return length if test_length in (None, length) else None
