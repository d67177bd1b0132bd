"""Data: real images through tensorflow-datasets, and generated tasks; batches are pure functions of (seed, step).

Each data set is a module with a function of the same name: `from dynexit.data.digits import digits`.
"""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.data import augment, digits, fashion_mnist, parity, prepare
    from dynexit.data.arrays import Splits, batch_indices, from_arrays, host_slice
    from dynexit.data.store import DataDamaged, DataNotPrepared, data_folder

__all__ = [
    "DataDamaged",
    "DataNotPrepared",
    "Splits",
    "augment",
    "batch_indices",
    "data_folder",
    "digits",
    "fashion_mnist",
    "from_arrays",
    "host_slice",
    "parity",
    "prepare",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "augment": "",
        "digits": "",
        "fashion_mnist": "",
        "parity": "",
        "prepare": "",
        "Splits": "arrays",
        "batch_indices": "arrays",
        "from_arrays": "arrays",
        "host_slice": "arrays",
        "DataDamaged": "store",
        "DataNotPrepared": "store",
        "data_folder": "store",
    },
)
