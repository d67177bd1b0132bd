"""Graph algorithms round by round, on a whole batch: their results and numbers of rounds."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from dynexit.data.host_shapes import Float, Int, Num

Weights: TypeAlias = Num[np.ndarray, "b n n"]
Nodes: TypeAlias = Int[np.ndarray, "b"]


class Traced(NamedTuple):
    """What an algorithm found, and how.

    Attributes:
      predecessors: int32 `[b, n]`, the node before each on its path from the source, itself for the
        source and for a node that is not reached; `[b, n, n]` for all pairs, row i the paths from
        i.
      distances: float32, like `predecessors`: the length of the path, -1 where there is none.
      rounds: int32 `[b]`, rounds until nothing changes, the one in which nothing does included.
      hints: int32 `[b, n, ...]`, the predecessors at the beginning of each round, the last repeated
        up to n rounds; None where they were not wanted.
    """

    predecessors: Int[np.ndarray, "b n ..."]
    distances: Float[np.ndarray, "b n ..."]
    rounds: Int[np.ndarray, "b"]
    hints: Int[np.ndarray, "b n n ..."] | None


class Algorithm(NamedTuple):
    """A graph algorithm as a task.

    Attributes:
      run: `run(weights [b, n, n], source [b], hints) -> Traced`; a weight of 0 is no edge.
      weighted: whether edges have lengths other than 1.
      sourced: whether paths begin at one node.
    """

    run: Callable[[Weights, Nodes, bool], Traced]
    weighted: bool
    sourced: bool


def run_breadth_first(weights: Weights, source: Nodes, hints: bool = False) -> Traced:
    """Breadth-first search: each round reaches the neighbours of all nodes reached.

    The lowest of the reached neighbours is the predecessor.

    Rounds = (greatest distance from the source) + 1.

    Args:
      weights: `[b, n, n]`, an edge from i to j where `weights[i, j]` is above 0.
      source: integers `[b]`.
      hints: whether to keep them.

    Returns:
      See `Traced`; distances count edges.

    Example:
      >>> path = np.eye(4, k=1)[None] + np.eye(4, k=-1)[None]
      >>> found = run_breadth_first(path, np.array([1]))
      >>> found.predecessors[0].tolist(), found.rounds.tolist()
      ([1, 1, 1, 2], [3])
    """
    count, nodes = weights.shape[:2]
    edges = weights > 0
    predecessors = np.tile(np.arange(nodes, dtype=np.int32), (count, 1))
    reached = np.arange(nodes) == source[:, None]
    distances = np.where(reached, 0, -1).astype(np.float32)
    rounds, running, frames = np.zeros(count, np.int32), np.ones(count, bool), []
    while running.any():
        frames += [predecessors] if hints else []
        rounds += running
        heard = edges & reached[:, :, None]  # [b, from, to]
        fresh = heard.any(axis=1) & ~reached
        predecessors = np.where(fresh, heard.argmax(axis=1), predecessors).astype(np.int32)
        distances = np.where(fresh, rounds.max().astype(np.float32), distances)
        reached = reached | fresh
        running = fresh.any(axis=1)
    return Traced(predecessors, distances, rounds, _stacked(frames, nodes))


def run_bellman_ford(weights: Weights, source: Nodes, hints: bool = False) -> Traced:
    """Bellman-Ford: each round takes shorter paths by way of the neighbours.

    The paths of the neighbours are those of the round before.

    d_j = min(d_j, min_i d_i + w_ij), all at once; of equal offers the one from the lowest node, and
    only if shorter.

    Args:
      weights: `[b, n, n]`, lengths of edges, 0 for none.
      source: integers `[b]`.
      hints: whether to keep them.

    Returns:
      See `Traced`.

    Example:
      >>> # 0 -> 2 -> 1 is shorter
      >>> weights = np.zeros((1, 3, 3)); weights[0, 0] = [0, 5, 1]; weights[0, 2, 1] = 1
      >>> found = run_bellman_ford(weights, np.array([0]))
      >>> found.predecessors[0].tolist(), found.distances[0].tolist(), found.rounds.tolist()
      ([0, 2, 0], [0.0, 2.0, 1.0], [3])
    """
    count, nodes = weights.shape[:2]
    lengths = np.where(weights != 0, weights, np.inf)
    predecessors = np.tile(np.arange(nodes, dtype=np.int32), (count, 1))
    distances = np.where(np.arange(nodes) == source[:, None], 0.0, np.inf)
    rounds, running, frames = np.zeros(count, np.int32), np.ones(count, bool), []
    while running.any():
        frames += [predecessors] if hints else []
        rounds += running
        offers = distances[:, :, None] + lengths
        best = offers.min(axis=1)
        shorter = best < distances
        predecessors = np.where(shorter, offers.argmin(axis=1), predecessors).astype(np.int32)
        distances = np.where(shorter, best, distances)
        running = shorter.any(axis=1)
    return Traced(predecessors, _finite(distances), rounds, _stacked(frames, nodes))


def run_floyd_warshall(weights: Weights, source: Nodes, hints: bool = False) -> Traced:
    """Floyd-Warshall: round k allows paths between all pairs by way of node k; n rounds.

    The diagonal begins at the length of a node's edge to itself, as in CLRS-30.

    Args:
      weights: `[b, n, n]`, lengths of edges, 0 for none.
      source: not read.
      hints: whether to keep them.

    Returns:
      See `Traced`; a pair without a path has the row's node as predecessor.

    Example:
      >>> path = np.eye(4, k=1)[None] + np.eye(4, k=-1)[None]
      >>> run_floyd_warshall(path, np.array([0])).distances[0, 0].tolist()
      [0.0, 1.0, 2.0, 3.0]
    """
    count, nodes = weights.shape[:2]
    joined = (weights != 0) | np.eye(nodes, dtype=bool)
    distances = np.where(joined, weights, np.inf).astype(np.float64)
    predecessors = np.tile(np.arange(nodes, dtype=np.int32)[:, None], (count, 1, nodes))
    frames = []
    for node in range(nodes):
        frames += [predecessors] if hints else []
        offers = distances[:, :, node, None] + distances[:, None, node, :]
        shorter = offers < distances
        predecessors = np.where(shorter, predecessors[:, None, node, :], predecessors)
        distances = np.where(shorter, offers, distances)
    return Traced(
        predecessors, _finite(distances), np.full(count, nodes, np.int32), _stacked(frames, nodes)
    )


def _finite(distances: np.ndarray) -> np.ndarray:
    return np.where(np.isinf(distances), -1, distances).astype(np.float32)


def _stacked(frames: list[np.ndarray], nodes: int) -> np.ndarray | None:
    """One frame per round, the last repeated, n frames in all.

    No shortest path has more than n - 1 edges, so n frames hold all rounds.
    """
    return (
        np.stack([frames[min(frame, len(frames) - 1)] for frame in range(nodes)], axis=1)
        if frames
        else None
    )


breadth_first = Algorithm(run_breadth_first, weighted=False, sourced=True)
bellman_ford = Algorithm(run_bellman_ford, weighted=True, sourced=True)
floyd_warshall = Algorithm(run_floyd_warshall, weighted=True, sourced=False)
