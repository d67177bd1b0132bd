"""Constructors of the tasks on grids and graphs; JAX and numpy are not loaded before `build`."""

import dataclasses
from typing import ClassVar, Literal

from dynexit.core.data import Dataset, Tokens
from dynexit.core.settings import at_least, between


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
        from dynexit.data.tasks.mazes import dataset

        return dataset(self)


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
        from dynexit.data.tasks.sudoku import dataset

        return dataset(self)


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
        found = at_least(self, 2, "nodes")
        found += [] if self.test_nodes is None else at_least(self, 2, "test_nodes")
        return found + between(self, 0.0, 1.0, "probability") + at_least(self, 1, "examples")

    def build(self) -> Dataset:
        """The splits, inputs float32 `[b, n, n, 2]`, labels int32.

        Labels are `[b, n]`, or `[b, n, n]` for all pairs.

        Raises:
          ValueError: a field out of range.
        """
        from dynexit.data.tasks.graphs import dataset

        return dataset(self)
