"""Constructors of data sets from files of your own; JAX is not loaded before `build`."""

import dataclasses
from pathlib import Path
from typing import Any

from dynexit.core.data import Dataset, Tokens
from dynexit.core.files import is_url
from dynexit.core.settings import between, valid_seed
from dynexit.data.files.table import Table, classes_of
from dynexit.data.files.table import read as read_table

SUFFIXES = (".png", ".jpg", ".jpeg", ".npy")


@dataclasses.dataclass(frozen=True)
class _Files:
    """What all of them have: one file or folder that is split, or one for each split."""

    path: Path = Path()
    """of the data, or of the training split where the two below are given"""
    calibration_path: Path | None = None
    """of the calibration split; None: a fraction of `path`"""
    test_path: Path | None = None
    """of the test split; None: a fraction of `path`"""
    calibration: float = 0.2
    """fraction of the rows in the calibration split, with the classes in proportion"""
    test: float = 0.2
    """fraction of the rows in the test split, with the classes in proportion"""
    split_seed: int = 0
    """which rows fall into which split; keep it to compare runs"""

    def __post_init__(self) -> None:
        for name in ("path", "calibration_path", "test_path"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, Path(value))

    @property
    def paths(self) -> tuple[Path, ...]:
        """`path` alone, or the paths of the three splits."""
        if self.calibration_path is None or self.test_path is None:
            return (self.path,)
        return (self.path, self.calibration_path, self.test_path)

    def _fields(self) -> list[str]:
        found = []
        if not (self.calibration > 0 and self.test > 0 and self.calibration + self.test < 1):
            found.append(
                "calibration and test must be above 0 and leave rows to train on, "
                f"got {self.calibration} and {self.test}"
            )
        if (self.calibration_path is None) != (self.test_path is None):
            found.append("calibration_path and test_path must be given together")
        found += [
            sentence.replace("seed", "split_seed", 1) for sentence in valid_seed(self.split_seed)
        ]
        return found + [
            f"path must be of this machine's file system, got {str(path)!r}"
            for path in self.paths
            if is_url(path)
        ]

    def _content(self) -> list[str]:
        raise NotImplementedError

    def validate(self) -> list[str]:
        """Values out of range and faults of the files, one sentence each."""
        found = self._fields()
        if not found:
            try:
                found = self._content()
            except (ValueError, TypeError, ImportError) as error:
                found = [str(error)]
        return found


@dataclasses.dataclass(frozen=True)
class FromCsv(_Files):
    """A table: numeric columns are the inputs, one column holds the class.

    The first line names the columns. Each column is scaled to mean 0 and standard deviation 1 over
    the training split.

    Example:
      >>> import pathlib, tempfile
      >>> rows = "".join(f"{i},{-i},{'odd' if i % 2 else 'even'}\\n" for i in range(20))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "table.csv"
      ...     _ = path.write_text("first,second,kind\\n" + rows)
      ...     data = FromCsv(path, label="kind").build()
      >>> data.inputs, data.classes, data.train.size, data.test.size
      ((2,), ('even', 'odd'), 12, 4)
    """

    label: str = "label"
    """column of the class"""
    columns: tuple[str, ...] = ()
    """numeric columns that are the inputs; empty for all but the label and the id"""
    id: str | None = None
    """column that names the rows; the names stay on the host, for reports"""
    scale: bool = True
    """scale each column by its mean and standard deviation over the training split"""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example; reads the table."""
        return (len(self.tables()[0].columns),)

    @property
    def classes(self) -> tuple[str, ...]:
        """The distinct labels of the training table, in order; reads the table."""
        return classes_of(self.tables()[0].labels)

    def tables(self) -> list[Table]:
        """The tables of `paths`; each is read once as long as the file does not change.

        Raises:
          ValueError: a table that cannot be used, with the file and the line.
        """
        return [read_table(path, self.label, self.columns, self.id) for path in self.paths]

    def _content(self) -> list[str]:
        self.tables()
        return _kinds(self.classes)

    def build(self) -> Dataset:
        """The splits; inputs float32 `[b, columns]`, and "id" where a column is named.

        Raises:
          ValueError: a field out of range, or a table that cannot be used.
        """
        from dynexit.data.files.datasets import csv_dataset

        return csv_dataset(self)


@dataclasses.dataclass(frozen=True)
class FromNpz(_Files):
    """Arrays of one `.npz` file, of which one holds the classes.

    Numbers are scaled to mean 0 and standard deviation 1 over the training split, each column of
    `[n, columns]` and each channel of `[n, ..., channels]`; bytes are divided by 255 first.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "arrays.npz"
      ...     np.savez(path, inputs=np.zeros((10, 8, 8, 1), np.uint8), labels=np.arange(10) % 2)
      ...     data = FromNpz(path).build()
      >>> data.inputs, data.classes, data.train.size
      ((8, 8, 1), ('0', '1'), 6)
    """

    inputs_name: str = "inputs"
    """name of the array `[n, ...]` of inputs: bytes or floating point; integers where `vocabulary`
    is given
    """
    labels_name: str = "labels"
    """name of the array `[n]` or `[n, ...]` of classes, integers from 0"""
    id: str | None = None
    """name of an array `[n]` that names the rows; it stays on the host, for reports"""
    vocabulary: int | None = None
    """number of tokens, where inputs are token ids"""
    ignore_label: int | None = None
    """a label that no loss and no score counts, for example -100"""
    scale: bool = True
    """scale inputs by their mean and standard deviation over the training split"""

    @property
    def inputs(self) -> tuple[int, ...] | Tokens:
        """Shape of one example; reads the file."""
        shape = self.arrays()[0]["inputs"].shape[1:]
        if self.vocabulary is None:
            return shape
        return Tokens(self.vocabulary, shape[0] if len(shape) == 1 else None)

    @property
    def classes(self) -> tuple[str, ...]:
        """ "0" to the largest label of the training split; reads the file."""
        return tuple(map(str, range(int(self.arrays()[0]["labels"].max()) + 1)))

    def arrays(self) -> list[dict[str, Any]]:
        """The checked arrays of `paths`: "inputs", "labels" and perhaps "id".

        Raises:
          ValueError, TypeError: arrays that cannot be used, with the file and the name.
        """
        from dynexit.data.files.arrays import read

        return [read(path, self) for path in self.paths]

    def _content(self) -> list[str]:
        if self.vocabulary is not None and self.vocabulary < 1:
            return [f"vocabulary must be at least 1, got {self.vocabulary}"]
        self.arrays()
        return _kinds(self.classes)

    def build(self) -> Dataset:
        """The splits; inputs float32 or int32 `[b, ...]`, and "id" where an array is named.

        Raises:
          ValueError, TypeError: a field out of range, or arrays that cannot be used.
        """
        from dynexit.data.files.datasets import npz_dataset

        return npz_dataset(self)


@dataclasses.dataclass(frozen=True)
class FromFolders(_Files):
    """Images in one folder for each class: `path/CLASS/*.png`, `.jpg` or `.npy`.

    All images have one size. Each channel is scaled to mean 0 and standard deviation 1 over the
    training split. The name of a file stays on the host as the row's "id". Pictures are read with
    Pillow (`pip install pillow`), arrays without it.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for kind in ("cat", "dog"):
      ...         (pathlib.Path(folder) / kind).mkdir()
      ...         for i in range(5):
      ...             np.save(pathlib.Path(folder) / kind / f"{i}.npy", np.zeros((4, 4), np.uint8))
      ...     data = FromFolders(pathlib.Path(folder)).build()
      >>> data.inputs, data.classes, data.train.size
      ((4, 4, 1), ('cat', 'dog'), 6)
    """

    grey: bool = False
    """read pictures with one channel; otherwise with red, green and blue"""
    shift: int = 0
    """pixels by which an image is moved at most in training"""
    flip: bool = False
    """mirror half of the images in training"""
    scale: bool = True
    """scale each channel by its mean and standard deviation over the training split"""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example; reads the first image."""
        from dynexit.data.files.images import read

        return read(self.files(self.path)[0][1], self.grey).shape

    @property
    def classes(self) -> tuple[str, ...]:
        """The folders of `path`, in alphabetical order."""
        return tuple(sorted({kind for kind, _ in self.files(self.path)}))

    def files(self, path: Path) -> list[tuple[str, Path]]:
        """The class and path of every image below a folder, in order.

        Raises:
          ValueError: no folder, no image, or a folder without one.
        """
        if not path.is_dir():
            raise ValueError(f"`path` must be a folder with one folder for each class, got {path}")
        found = []
        for folder in sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] not in "._"):
            images = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
            if not images:
                raise ValueError(f"`path`: {folder} has no image ({', '.join(SUFFIXES)})")
            found += [(folder.name, image) for image in images]
        if not found:
            raise ValueError(f"`path`: {path} must hold one folder for each class, got none")
        return found

    def _content(self) -> list[str]:
        found = between(self, 0, min(self.inputs[:2]) - 1, "shift")
        for path in self.paths[1:]:
            new = {kind for kind, _ in self.files(path)} - set(self.classes)
            if new:
                found.append(f"{path} has classes that {self.path} lacks: {', '.join(sorted(new))}")
        return found + _kinds(self.classes)

    def build(self) -> Dataset:
        """The splits; inputs float32 `[b, height, width, channels]`, and "id".

        Raises:
          ValueError: a field out of range, or images of different sizes.
          ImportError: pictures without Pillow.
        """
        from dynexit.data.files.datasets import folders_dataset

        return folders_dataset(self)


def _kinds(classes: tuple[str, ...]) -> list[str]:
    if len(classes) > 1:
        return []
    return [f"labels must be of at least 2 classes, got only {', '.join(classes) or 'none'}"]
