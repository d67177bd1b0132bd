"""Mazes: find the way from the start to the end. The longer the way, the more steps it takes."""

import functools

import numpy as np

from dynexit.core.data import Dataset, Splits
from dynexit.core.labels import IGNORED
from dynexit.core.settings import refuse_invalid
from dynexit.data.host_shapes import Int, Num
from dynexit.data.source import Batch, mapped
from dynexit.data.tasks import maze_walls
from dynexit.data.tasks.procedural import generated
from dynexit.data.tasks.settings_grids import Mazes


def free_places(splits: Splits) -> Splits:
    """The same mazes with the label `IGNORED` at walls, as in the published loss and score.

    Example:
      >>> batch = free_places(mazes(9, scale=1)).train.batch(0, 7, 2)
      >>> sorted(set(batch["labels"][~batch["inputs"].any(-1)].tolist()))
      [-1]
    """

    def open_only(batch: Batch) -> Batch:
        return {
            **batch,
            "labels": np.where(batch["inputs"].any(-1), batch["labels"], np.int32(IGNORED)),
        }

    return Splits(*(mapped(source, open_only) for source in splits))


def filling_rounds(inputs: Num[np.ndarray, "b A A 3"]) -> Int[np.ndarray, "b"]:
    """Rounds of dead-end filling that solve each maze.

    A free place with one free neighbour that is no start or end is filled.

    All dead ends lose a place a round, so it is the longest of them that counts, with all that
    branches off it. In a tree what is left is the way. The longer the way, the less is left for
    dead ends: within a size the two go opposite ways.

    Args:
      inputs: `[b, A, A, 3]` as of `mazes(..., scale=1)`; trees.

    Returns:
      int32 `[b]`.

    Example:
      >>> batch = mazes(9, scale=1).train.batch(0, 7, 2)
      >>> filling_rounds(batch["inputs"]).tolist(), batch["steps"].tolist()
      ([14, 28], [32, 4])
    """
    free, ends = inputs.any(-1), inputs.any(-1) & ~inputs.all(-1)
    rounds = np.zeros(len(inputs), np.int32)
    while True:
        beside = np.pad(free, ((0, 0), (1, 1), (1, 1))).astype(np.int8)
        neighbours = (
            beside[:, 2:, 1:-1] + beside[:, :-2, 1:-1] + beside[:, 1:-1, 2:] + beside[:, 1:-1, :-2]
        )
        dead = free & ~ends & (neighbours <= 1)
        if not dead.any():
            return rounds
        free, rounds = free & ~dead, rounds + dead.any(axis=(1, 2))


def mazes(
    size: int,
    test_size: int | None = None,
    scale: int = 2,
    loops: float = 0.0,
    examples: int = 1000,
) -> Splits:
    """Images of mazes; the label of each pixel is whether it lies on the shortest path.

    "Size" s has c = (s + 1) / 2 cells a side. Start and end are two cells drawn alike; a
    depth-first backtracker carves from the start: it moves to a random unvisited neighbour and
    opens the wall between, and where there is none it moves back. The maze is an array of 2c + 1 a
    side, cells and open walls free. The image repeats each place `scale` times either way and has
    `scale - 1` more pixels of wall all round: H = W = scale (2c + 1) + 2 (scale - 1), 24 for s = 9
    and 32 for s = 13.

    A tree can be solved by filling dead ends, which is local and finds no path. With `loops` each
    wall that is still closed is opened with that chance, and start and end are drawn again until
    there is one shortest path.

    Args:
      size: s in training and calibration, odd and from 3.
      test_size: s in the test split, for extrapolation; by default as in training.
      scale: pixels a place is wide; 1 gives the bare array.
      loops: fraction of closed walls to open, 0..1; 0 for a tree.
      examples: size of `calibration` and of `test`, and of `train.examples()`.

    Returns:
      Three sources; inputs uint8 `[b, H, W, 3]` of 0 and 1: free (1, 1, 1), start (0, 1, 0), end
      (1, 0, 0), wall (0, 0, 0); labels int32 `[b, H, W]`, 1 on the path, both ends included; steps
      int32 `[b]`, moves on the path from place to place of the array, whatever the scale. Walls are
      `~inputs.any(-1)`: the published loss and score leave them out.

    Raises:
      ValueError: sizes that are even or below 3, `scale` or `examples` below 1, `loops` outside
        0..1.

    Example:
      >>> batch = mazes(9, test_size=13).train.batch(0, 7, 4)
      >>> # 49 free places of 2 x 2 pixels
      >>> batch["inputs"].shape, batch["inputs"].any(-1).sum(axis=(1, 2)).tolist()
      ((4, 24, 24, 3), [196, 196, 196, 196])
      >>> (batch["labels"].sum(axis=(1, 2)) == 4 * (batch["steps"] + 1)).all()
      np.True_

    Source: Schwarzschild et al. 2021, arXiv 2106.04537, and Bansal et al. 2022, arXiv 2202.05826:
      train on s = 9, test on 13, 59, 201. Deviations: the channel comes last, bytes rather than
      floats, training draws without end where the papers keep 50,000 mazes; `loops` is not in the
      papers.
    """
    test_size = size if test_size is None else test_size
    for name, value in (("size", size), ("test_size", test_size)):
        if value < 3 or value % 2 == 0:
            raise ValueError(f"`{name}` must be odd and at least 3, got {value}.")
    if scale < 1:
        raise ValueError(f"`scale` must be at least 1, got {scale}.")
    if not 0 <= loops <= 1:
        raise ValueError(f"`loops` must lie in 0..1, got {loops}.")
    train = functools.partial(_draw, side=(size + 1) // 2, scale=scale, loops=loops)
    test = functools.partial(_draw, side=(test_size + 1) // 2, scale=scale, loops=loops)
    return generated(train, examples, test_draw=test, by_rows=not loops)


def dataset(settings: Mazes) -> Dataset:
    """The data set of `dx.data.Mazes`."""
    refuse_invalid(settings)
    s = settings
    splits = free_places(mazes(s.size, s.test_size, s.scale, s.loops, s.examples))
    prepare = lambda images: images.astype("float32")
    return Dataset(*splits, s.inputs, s.classes, prepare=prepare)


def _draw(random: np.random.Generator, size: int, side: int, scale: int, loops: float) -> Batch:
    start, end = _ends(random, size, side)
    parent = maze_walls.carve(random, start, side)
    doors = maze_walls.doors_of(parent, side)
    if loops:
        doors = maze_walls.open_more(random, doors, loops)
        start, end, parent = _one_way(random, doors, side)
    path, length = maze_walls.walk(parent, start, end, side)
    inputs = np.repeat(maze_walls.drawn(doors)[..., None], 3, axis=-1)
    for cell, colour in ((start, (0, 1, 0)), (end, (1, 0, 0))):
        row, column = np.divmod(cell, side + 2)
        inputs[np.arange(size), 2 * row - 1, 2 * column - 1] = colour
    return {
        "inputs": _enlarged(inputs, scale),
        "labels": _enlarged(path, scale).astype(np.int32),
        "steps": length,
    }


def _ends(random: np.random.Generator, size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Two distinct cells for each maze, all pairs alike."""
    start = random.integers(0, side * side, size=size)
    end = (start + random.integers(1, side * side, size=size)) % (side * side)
    return maze_walls.cell_number(start, side), maze_walls.cell_number(end, side)


def _one_way(
    random: np.random.Generator, doors: maze_walls.Doors, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends with one shortest path between them, and the parents along it.

    Neighbours have one, so there are such ends.
    """
    count, width = doors.east.shape[:2]
    start, end = np.zeros(count, np.int64), np.zeros(count, np.int64)
    parent = np.zeros((count, width**2), np.int64)
    todo = np.arange(count)
    while len(todo):
        begin, finish = _ends(random, len(todo), side)
        found, ways = maze_walls.search(
            maze_walls.Doors(doors.east[todo], doors.south[todo]), begin
        )
        one = ways[np.arange(len(todo)), finish] == 1
        start[todo[one]], end[todo[one]], parent[todo[one]] = begin[one], finish[one], found[one]
        todo = todo[~one]
    return start, end, parent


def _enlarged(places: np.ndarray, scale: int) -> np.ndarray:
    """`[b, A, A, ...]` with each place repeated and the margin added."""
    margin = [(0, 0), (scale - 1, scale - 1), (scale - 1, scale - 1)] + [(0, 0)] * (places.ndim - 3)
    return np.pad(places.repeat(scale, axis=1).repeat(scale, axis=2), margin)
