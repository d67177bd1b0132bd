"""Mazes as arrays, a whole batch at once: carving, breadth-first search, the path back."""

import functools
from typing import NamedTuple

import numpy as np

from dynexit.data.host_shapes import Bool, Int, Num

_DRAWS = 12  # a multiple of 1, 2, 3 and 4: a draw of 0..11 modulo the number of choices is uniform


class Doors(NamedTuple):
    """Which walls are open; the border has none.

    Attributes:
      east: bool `[b, width, width]`, between a cell and its neighbour on the right.
      south: bool `[b, width, width]`, between a cell and its neighbour below.
    """

    east: Bool[np.ndarray, "b width width"]
    south: Bool[np.ndarray, "b width width"]


def cell_number(index: Int[np.ndarray, "b"], side: int) -> Int[np.ndarray, "b"]:
    """The number of the cell that comes `index`-th, row by row, among the `side * side`.

    Example:
      >>> cell_number(np.array([0, 1, 3]), 3).tolist()
      [6, 7, 11]
    """
    return (index // side + 1) * (side + 2) + index % side + 1


def carve(
    random: np.random.Generator, start: Int[np.ndarray, "b"], side: int
) -> Int[np.ndarray, "b cells"]:
    """Mazes by the depth-first backtracker.

    It moves to a random unvisited neighbour; where there is none it moves back.

    Every cell is entered once and left backwards at most once, so all mazes are done after 2
    (side^2 - 1) moves.

    Args:
      random: the generator; consumed.
      start: cell numbers `[b]`.
      side: cells per side, from 1.

    Returns:
      Parents, int64 `[b, width * width]`: a tree that spans all cells, its root the start; the
      border's are its own.

    Example:
      >>> parent = carve(np.random.default_rng(0), np.array([5]), 2)
      >>> int((parent[0] != np.arange(16)).sum())
      3
    """
    width = side + 2
    moves = _moves(width)
    rows = np.arange(len(start)) * width**2
    unseen = np.zeros((len(start), width, width), np.uint8)
    unseen[:, 1:-1, 1:-1] = 1
    unseen = unseen.reshape(-1)
    parent = np.arange(len(start) * width**2)
    at = rows + start
    unseen[at] = 0
    for _ in range(2 * (side * side - 1)):
        free = unseen[at - 1] + 2 * unseen[at + 1] + 4 * unseen[at + width] + 8 * unseen[at - width]
        move = moves[free * _DRAWS + random.integers(0, _DRAWS, size=len(start), dtype=np.uint8)]
        forward, after, back = move != 0, at + move, parent[at]
        parent[after] = np.where(
            forward, at, back
        )  # on the way back `after` is `at`, whose parent stays
        unseen[after] = 0
        at = np.where(forward, after, back)
    return parent.reshape(len(start), -1) - rows[:, None]


@functools.cache
def _moves(width: int) -> np.ndarray:
    """Increments of the cell number, int64 `[16 * 12]`, by the free neighbours and a draw.

    The neighbours are bits W, E, S, N; the increment is 0 without one.
    """
    table = np.zeros((16, _DRAWS), np.int64)
    for free in range(1, 16):
        choices = [move for bit, move in enumerate((-1, 1, width, -width)) if free >> bit & 1]
        table[free] = [choices[draw % len(choices)] for draw in range(_DRAWS)]
    return table.reshape(-1)


def doors_of(parent: Int[np.ndarray, "b cells"], side: int) -> Doors:
    """The open walls of the trees that `parent`, `[b, width * width]`, describes."""
    width = side + 2
    joined = []
    for offset in (1, width):
        number = np.arange(width**2 - offset)
        door = np.zeros(parent.shape, bool)
        door[:, :-offset] = (parent[:, :-offset] == number + offset) | (
            parent[:, offset:] == number
        )
        joined.append(door.reshape(-1, width, width))
    return Doors(*joined)


def open_more(random: np.random.Generator, doors: Doors, fraction: float) -> Doors:
    """Opens each wall between two cells that is still closed with the chance `fraction`."""
    east, south = doors.east.copy(), doors.south.copy()
    east[:, 1:-1, 1:-2] |= random.random(east[:, 1:-1, 1:-2].shape, np.float32) < fraction
    south[:, 1:-2, 1:-1] |= random.random(south[:, 1:-2, 1:-1].shape, np.float32) < fraction
    return Doors(east, south)


def search(
    doors: Doors, start: Int[np.ndarray, "b"]
) -> tuple[Int[np.ndarray, "b cells"], Num[np.ndarray, "b cells"]]:
    """Breadth-first search from `start`, and whether there is more than one shortest path.

    Args:
      doors: the mazes.
      start: cell numbers `[b]`.

    Returns:
      Parents on a shortest path, int64 `[b, width * width]`, and the number of shortest paths from
      the start, uint8 `[b, width * width]`: 0 where none leads, 2 for two or more.

    Example:
      >>> doors = Doors(np.zeros((1, 4, 4), bool), np.zeros((1, 4, 4), bool))
      >>> doors.east[0, 1:3, 1] = doors.south[0, 1, 1:3] = True  # four cells in a ring
      >>> search(doors, np.array([5]))[1].reshape(4, 4)[1:3, 1:3].tolist()
      [[1, 1], [1, 2]]
    """
    count, width = doors.east.shape[:2]
    east, south = doors.east.reshape(count, -1), doors.south.reshape(count, -1)
    gates = (
        (1, east),
        (-1, np.roll(east, 1, axis=1)),
        (width, south),
        (-width, np.roll(south, width, axis=1)),
    )
    number = np.arange(width**2)
    parent = np.tile(number, (count, 1))
    ways = np.zeros((count, width**2), np.uint8)
    ways[np.arange(count), start] = 1
    front = ways.copy()
    while front.any():
        fresh, found = ways == 0, np.zeros_like(ways)
        for offset, gate in gates:  # nothing wraps round: the border has no doors
            came = np.roll(front * gate, offset, axis=1)
            found += came
            parent = np.where((came > 0) & fresh, number - offset, parent)
        front = np.minimum(found, 2) * fresh
        ways += front
    return parent, ways


def walk(
    parent: Int[np.ndarray, "b cells"],
    start: Int[np.ndarray, "b"],
    end: Int[np.ndarray, "b"],
    side: int,
) -> tuple[Num[np.ndarray, "b A A"], Int[np.ndarray, "b"]]:
    """The path from `end` back to `start` along the parents, as an array with walls.

    Args:
      parent: `[b, width * width]`.
      start, end: cell numbers `[b]`.
      side: cells per side.

    Returns:
      The path, uint8 `[b, 2 side + 1, 2 side + 1]`, both ends included, and its length, int32
      `[b]`, moves from one place of
      that array to the next: two for each cell, as the wall between counts.

    Example:
      >>> parent = np.arange(16)[None].copy()
      >>> parent[0, 6] = 5
      >>> path, length = walk(parent, np.array([5]), np.array([6]), 2)
      >>> path[0, 1].tolist(), length.tolist()
      ([0, 1, 1, 1, 0], [2])
    """
    width, across, rows = side + 2, 2 * side + 1, np.arange(len(start))
    number = np.arange(width**2)
    place = (2 * (number // width) - 1) * across + 2 * (number % width) - 1
    path = np.zeros((len(start), across * across), np.uint8)
    length = np.zeros(len(start), np.int32)
    path[rows, place[start]] = 1
    at = end
    while (at != start).any():
        up = parent[rows, at]
        path[rows, place[at]] = 1
        path[rows, (place[at] + place[up]) // 2] = 1
        length += 2 * (at != start).astype(np.int32)
        at = up
    return path.reshape(-1, across, across), length


def drawn(doors: Doors) -> Num[np.ndarray, "b A A"]:
    """The free places, uint8 `[b, 2 side + 1, 2 side + 1]`.

    Cells are at odd rows and columns, with open walls between them.
    """
    side = doors.east.shape[1] - 2
    free = np.zeros((len(doors.east), 2 * side + 1, 2 * side + 1), np.uint8)
    free[:, 1::2, 1::2] = 1
    free[:, 1::2, 2:-1:2] = doors.east[:, 1:-1, 1:-2]
    free[:, 2:-1:2, 1::2] = doors.south[:, 1:-2, 1:-1]
    return free
