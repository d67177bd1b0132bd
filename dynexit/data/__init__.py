"""Data: real images through tensorflow-datasets, and generated tasks; batches are pure functions of (seed, step).

Each data set is a module with a function of the same name: `from dynexit.data.digits import digits`.
"""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.data import (
        addition,
        augment,
        chomsky,
        copying,
        digits,
        fashion_mnist,
        graph_algorithms,
        graphs,
        mazes,
        parity,
        prefix_sums,
        prepare,
        sudoku,
    )
    from dynexit.data.arrays import Splits, batch_indices, from_arrays, from_leaves, host_slice
    from dynexit.data.procedural import generated
    from dynexit.data.store import DataDamaged, DataNotPrepared, data_folder

__all__ = [
    "DataDamaged",
    "DataNotPrepared",
    "Splits",
    "addition",
    "augment",
    "batch_indices",
    "chomsky",
    "copying",
    "data_folder",
    "digits",
    "fashion_mnist",
    "from_arrays",
    "from_leaves",
    "generated",
    "graph_algorithms",
    "graphs",
    "host_slice",
    "mazes",
    "parity",
    "prefix_sums",
    "prepare",
    "sudoku",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "addition": "",
        "augment": "",
        "chomsky": "",
        "copying": "",
        "digits": "",
        "fashion_mnist": "",
        "graph_algorithms": "",
        "graphs": "",
        "mazes": "",
        "parity": "",
        "prefix_sums": "",
        "prepare": "",
        "sudoku": "",
        "Splits": "arrays",
        "batch_indices": "arrays",
        "from_arrays": "arrays",
        "from_leaves": "arrays",
        "host_slice": "arrays",
        "generated": "procedural",
        "DataDamaged": "store",
        "DataNotPrepared": "store",
        "data_folder": "store",
    },
)
