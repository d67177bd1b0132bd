"""Data sets and generated tasks; batches are pure functions of (seed, step)."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.core.data import Splits as Splits
    from dynexit.data import augment as augment
    from dynexit.data import prepare as prepare
    from dynexit.data import tokenizers as tokenizers
    from dynexit.data.files.settings import FromCsv as FromCsv
    from dynexit.data.files.settings import FromFolders as FromFolders
    from dynexit.data.files.settings import FromNpz as FromNpz
    from dynexit.data.source import batch_indices as batch_indices
    from dynexit.data.source import from_arrays as from_arrays
    from dynexit.data.source import from_leaves as from_leaves
    from dynexit.data.source import part as part
    from dynexit.data.store import DataDamaged as DataDamaged
    from dynexit.data.store import DataNotPrepared as DataNotPrepared
    from dynexit.data.store import data_folder as data_folder
    from dynexit.data.tasks.addition import addition as addition
    from dynexit.data.tasks.chomsky import chomsky as chomsky
    from dynexit.data.tasks.copying import copying as copying
    from dynexit.data.tasks.graphs import graphs as graphs
    from dynexit.data.tasks.mazes import mazes as mazes
    from dynexit.data.tasks.parity import parity as parity
    from dynexit.data.tasks.prefix_sums import prefix_sums as prefix_sums
    from dynexit.data.tasks.procedural import generated as generated
    from dynexit.data.tasks.settings_grids import Graphs as Graphs
    from dynexit.data.tasks.settings_grids import Mazes as Mazes
    from dynexit.data.tasks.settings_grids import Sudoku as Sudoku
    from dynexit.data.tasks.settings_sequences import Addition as Addition
    from dynexit.data.tasks.settings_sequences import Chomsky as Chomsky
    from dynexit.data.tasks.settings_sequences import Copying as Copying
    from dynexit.data.tasks.settings_sequences import Parity as Parity
    from dynexit.data.tasks.settings_sequences import PrefixSums as PrefixSums
    from dynexit.data.tasks.sudoku import sudoku as sudoku
    from dynexit.data.text.python_source import python_source as python_source
    from dynexit.data.text.settings import PythonSource as PythonSource
    from dynexit.data.text.settings import TextDocuments as TextDocuments
    from dynexit.data.vision.digits import digits as digits
    from dynexit.data.vision.fashion_mnist import fashion_mnist as fashion_mnist
    from dynexit.data.vision.settings import Digits as Digits
    from dynexit.data.vision.settings import FashionMnist as FashionMnist

__getattr__, __dir__ = attach(__name__)
