"""The data sets of the generated tasks, one function for each class of `settings`."""

from collections.abc import Callable
from typing import Any

from dynexit.core.data import Dataset, Splits
from dynexit.core.settings import refuse_invalid
from dynexit.data.tasks import graph_algorithms
from dynexit.data.tasks import settings as constructors
from dynexit.data.tasks.addition import addition
from dynexit.data.tasks.chomsky import TASKS, chomsky
from dynexit.data.tasks.copying import copying
from dynexit.data.tasks.graphs import erdos_renyi, graphs, grids, paths
from dynexit.data.tasks.mazes import free_places, mazes
from dynexit.data.tasks.parity import parity
from dynexit.data.tasks.prefix_sums import prefix_sums
from dynexit.data.tasks.sudoku import sudoku


def parity_dataset(d: constructors.Parity) -> Dataset:
    """See `dx.data.Parity`."""
    refuse_invalid(d)
    return _dataset(d, parity(d.length, *d.nonzeros(), examples=d.examples))


def prefix_sums_dataset(d: constructors.PrefixSums) -> Dataset:
    """See `dx.data.PrefixSums`."""
    refuse_invalid(d)
    return _dataset(d, prefix_sums(d.length, d.test_length, d.examples))


def mazes_dataset(d: constructors.Mazes) -> Dataset:
    """See `dx.data.Mazes`."""
    refuse_invalid(d)
    splits = free_places(mazes(d.size, d.test_size, d.scale, d.loops, d.examples))
    return _dataset(d, splits, prepare=lambda images: images.astype("float32"))


def addition_dataset(d: constructors.Addition) -> Dataset:
    """See `dx.data.Addition`."""
    refuse_invalid(d)
    return _dataset(d, addition(d.length, d.test_length, d.carries, d.test_carries, d.examples))


def copying_dataset(d: constructors.Copying) -> Dataset:
    """See `dx.data.Copying`."""
    refuse_invalid(d)
    splits = copying(d.length, d.test_length, d.backwards, d.examples)
    return _dataset(d, splits, augment=positions_from(d.shift) if d.shift else None)


def sudoku_dataset(d: constructors.Sudoku) -> Dataset:
    """See `dx.data.Sudoku`."""
    refuse_invalid(d)
    return _dataset(d, sudoku(d.box, (d.fewest, d.most), examples=d.examples))


def chomsky_dataset(d: constructors.Chomsky) -> Dataset:
    """See `dx.data.Chomsky`."""
    refuse_invalid(d)
    task = TASKS[d.task]
    splits = chomsky(task, (1, d.length), (d.length + 1, d.test_length), d.examples)
    return _dataset(d, splits, prepare=one_hot(task.vocabulary + 2) if d.one_hot else None)


def graphs_dataset(d: constructors.Graphs) -> Dataset:
    """See `dx.data.Graphs`."""
    refuse_invalid(d)
    family = {"erdos_renyi": erdos_renyi(d.probability), "paths": paths, "grids": grids}[d.family]
    algorithm = getattr(graph_algorithms, d.algorithm)
    splits = graphs(algorithm, d.nodes, d.test_nodes, family, hints=d.hints, examples=d.examples)
    return _dataset(d, splits)


def positions_from(shift: int) -> Callable[[Any, Any], Any]:
    """`augment(key, tokens [b, L]) -> {"tokens", "positions"}`; positions begin at 0..shift."""
    import jax
    import jax.numpy as jnp

    def augment(key: Any, tokens: Any) -> Any:
        begin = jax.random.randint(key, (len(tokens), 1), 0, shift + 1)
        place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return {"tokens": tokens, "positions": begin + place}

    return augment


def one_hot(vocabulary: int) -> Callable[[Any], Any]:
    """`prepare(tokens [b, L]) -> float32 [b, L, vocabulary]`."""
    import jax

    return lambda tokens: jax.nn.one_hot(tokens, vocabulary)


def _dataset(settings: Any, splits: Splits, augment: Any = None, prepare: Any = None) -> Dataset:
    return Dataset(*splits, settings.inputs, settings.classes, augment, prepare)
