"""Shortest paths on graphs; the number of rounds is the distance to the farthest node."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from dynexit.core.data import Dataset, Splits
from dynexit.core.settings import refuse_invalid
from dynexit.data.host_shapes import Bool
from dynexit.data.source import Batch
from dynexit.data.tasks import graph_algorithms
from dynexit.data.tasks.graph_algorithms import Algorithm
from dynexit.data.tasks.procedural import at_least, generated
from dynexit.data.tasks.settings_grids import Graphs

Joined: TypeAlias = Bool[np.ndarray, "size nodes nodes"]
Family: TypeAlias = Callable[[np.random.Generator, int, int], Joined]
"""`family(random, size, nodes) -> bool [size, nodes, nodes]`, symmetric."""


def erdos_renyi(probability: float = 0.5) -> Family:
    """Random graphs: A = B * B^T (by elements) with B_ij ~ Bernoulli(p).

    An edge has probability p^2, one to the node itself p.

    Of 16 nodes and p = 0.5 the farthest is 2 to 6 edges away, of 64 only 2 or 3: larger ones need
    fewer rounds.

    Raises:
      ValueError: a probability outside 0..1.

    Example:
      >>> bool(erdos_renyi(1.0)(np.random.default_rng(0), 1, 3).all())
      True
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"`probability` must lie in 0..1, got {probability}.")

    return functools.partial(_joined_by_chance, probability=probability)


def _joined_by_chance(
    random: np.random.Generator, size: int, nodes: int, probability: float
) -> Joined:
    joined = random.random((size, nodes, nodes)) < probability
    return joined & joined.swapaxes(1, 2)


def paths(random: np.random.Generator, size: int, nodes: int) -> Joined:
    """All nodes in one row, in random order; the farthest node is n / 2 to n - 1 edges away.

    Example:
      >>> int(paths(np.random.default_rng(0), 1, 7).sum())  # six edges, both ways
      12
    """
    return _grid(random, size, 1, nodes)


def grids(random: np.random.Generator, size: int, nodes: int) -> Joined:
    """The nodes of a grid in random order, as near to a square as n can be divided.

    It is a row where n is prime.

    Example:
      >>> int(grids(np.random.default_rng(0), 1, 6).sum())  # 2 x 3: seven edges, both ways
      14
    """
    rows = max(number for number in range(1, int(nodes**0.5) + 1) if nodes % number == 0)
    return _grid(random, size, rows, nodes // rows)


def _grid(random: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    row, column = np.divmod(np.arange(rows * columns), columns)
    apart = abs(row[:, None] - row) + abs(column[:, None] - column)
    order = random.permuted(np.tile(np.arange(rows * columns), (size, 1)), axis=1)
    return (apart == 1)[order[:, :, None], order[:, None, :]]


def graphs(
    algorithm: Algorithm,
    nodes: int,
    test_nodes: int | None = None,
    family: Family | None = None,
    test_family: Family | None = None,
    hints: bool = False,
    examples: int = 1000,
) -> Splits:
    """Random graphs, and what a graph algorithm finds in them.

    Lengths of edges: w = sqrt(u u' + 0.001) with u, u' ~ U[0, 1) at (i, j) and (j, i), or 1. The
    source is any node.

    Args:
      algorithm: `graph_algorithms.breadth_first`, `bellman_ford` or `floyd_warshall`.
      nodes: n, in training and calibration, from 2.
      test_nodes: nodes in the test split, for extrapolation; by default as in training.
      family: draws which nodes are joined: `erdos_renyi(p)`, `paths`, `grids` or your own; by
        default `erdos_renyi(0.5)`.
      test_family: the same for the test split; by default as in training.
      hints: whether batches hold the predecessors at the beginning of each round.
      examples: size of `calibration` and of `test`, and of `train.examples()`.

    Returns:
      Three sources. inputs float32 `[b, n, n, 2]`: the length of the edge from i to j or 0; at
      (source, source) a 1 in the second channel. labels int32 `[b, n]`, the predecessor of each
      node, itself for the source and what it does not reach; `[b, n, n]` for all pairs. distances
      float32 like the labels, -1 where there is no path; steps int32 `[b]`, rounds until nothing
      changes, the one in which nothing does included (n for Floyd-Warshall). hints int32 `[b, n,
      n]` (`[b, n, n, n]` for all pairs), if wanted, the last repeated up to n rounds.

    Raises:
      TypeError: `algorithm` is not one of `graph_algorithms`.
      ValueError: `nodes` or `test_nodes` below 2, `examples` below 1.

    Example:
      >>> from dynexit.data.tasks.graph_algorithms import breadth_first
      >>> batch = graphs(breadth_first, 16, test_nodes=64, family=paths).train.batch(0, 7, 4)
      >>> (batch["distances"].max(axis=1) + 1).astype(int).tolist() == batch["steps"].tolist()
      True

    Source: Velickovic et al. 2022 (CLRS-30), arXiv 2205.15659: train on 16 nodes, test on 64,
      Erdos-Renyi with p = 0.5. Deviations: nodes have no position (their number is their index in
      the arrays); paths and grids are not in the paper, added because random graphs need few
      rounds; training draws without end where the paper keeps 1,000 graphs.
    """
    if not isinstance(algorithm, Algorithm):
        raise TypeError(
            "`algorithm` must be one of `dynexit.data.tasks.graph_algorithms`, such as "
            f"`breadth_first`, got {algorithm!r}"
        )
    test_nodes = nodes if test_nodes is None else test_nodes
    family = erdos_renyi() if family is None else family
    at_least(2, nodes=nodes, test_nodes=test_nodes)
    draw = functools.partial(_draw, algorithm=algorithm, hints=hints)
    return generated(
        functools.partial(draw, nodes=nodes, family=family),
        examples,
        test_draw=functools.partial(
            draw, nodes=test_nodes, family=family if test_family is None else test_family
        ),
        by_rows=getattr(family, "func", family) in (_joined_by_chance, paths, grids),
    )


def dataset(settings: Graphs) -> Dataset:
    """The data set of `dx.data.Graphs`."""
    refuse_invalid(settings)
    s = settings
    family = {"erdos_renyi": erdos_renyi(s.probability), "paths": paths, "grids": grids}[s.family]
    algorithm = getattr(graph_algorithms, s.algorithm)
    splits = graphs(algorithm, s.nodes, s.test_nodes, family, hints=s.hints, examples=s.examples)
    return Dataset(*splits, s.inputs, s.classes)


def _draw(
    random: np.random.Generator,
    size: int,
    nodes: int,
    family: Family,
    algorithm: Algorithm,
    hints: bool,
) -> Batch:
    joined = family(random, size, nodes)
    weights = joined.astype(np.float32)
    if algorithm.weighted:
        uniform = random.random((size, nodes, nodes), np.float32)
        weights *= np.sqrt(uniform * uniform.swapaxes(1, 2) + np.float32(1e-3))
    source = random.integers(0, nodes, size=size)
    marked = np.zeros_like(weights)
    if algorithm.sourced:
        marked[np.arange(size), source, source] = 1
    traced = algorithm.run(weights, source, hints)
    found = {"labels": traced.predecessors, "distances": traced.distances, "steps": traced.rounds}
    return {
        "inputs": np.stack([weights, marked], axis=-1),
        **found,
        **({"hints": traced.hints} if hints else {}),
    }
