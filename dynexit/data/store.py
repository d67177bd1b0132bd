"""Prepared data on disk: array_record files of tensorflow-datasets, and decoded arrays.

The records are what tensorflow-datasets and grain read (`builder(recipe).as_data_source("train")`).
Decoding 70,000 of them takes 3 s and reading their arrays 0.3 s, so the decoded arrays are kept in
one `.npz` beside them, whose name carries the SHA-256 of its content: damage is found on loading.

Where: `$DYNEXIT_DATA`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`; below it
`dynexit_NAME/1.0.0/`. The folder of a version appears by one rename when it is whole. Nothing here
uses the network.
"""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from dynexit.core.files import local, lock
from dynexit.data.host_shapes import Num

if TYPE_CHECKING:
    import tensorflow_datasets

Builder: TypeAlias = "tensorflow_datasets.core.DatasetBuilder"
PathLike: TypeAlias = str | os.PathLike[str]

VERSION = "1.0.0"

Pair: TypeAlias = tuple[Num[np.ndarray, "_n ..."], Num[np.ndarray, "_n"]]
Arrays: TypeAlias = dict[str, Pair]
"""Name of a split to (images uint8 `[n, ...]`, labels int32 `[n]`)."""


class DataNotPrepared(RuntimeError):
    """The data set is not on this machine yet; the message says how to get it."""


class DataDamaged(RuntimeError):
    """A file does not hold what was written; the message names it and says how to mend it."""


class Recipe(NamedTuple):
    """What a data set is.

    Attributes:
      name: as in `dynexit data prepare NAME`.
      shape: of one image, uint8.
      classes: names of the classes; labels are their indices.
      description, homepage: for the records' own metadata.
      cure: what to do when it is not prepared.
    """

    name: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    description: str
    homepage: str
    cure: str


def data_folder(folder: PathLike | None = None) -> Path:
    """The folder of the data: `folder`, else an environment variable, else the default.

    The variables are `$DYNEXIT_DATA` and `$TFDS_DATA_DIR`; the default is `~/tensorflow_datasets`.
    """
    chosen = (
        folder
        or os.environ.get("DYNEXIT_DATA")
        or os.environ.get("TFDS_DATA_DIR")
        or "~/tensorflow_datasets"
    )
    return local(chosen, "folder").expanduser()


def home(recipe: Recipe, folder: PathLike | None = None) -> Path:
    """The folder of one prepared data set; it exists only when it is whole."""
    return data_folder(folder) / f"dynexit_{recipe.name}" / VERSION


def load(recipe: Recipe, folder: PathLike | None = None) -> Arrays:
    """Reads a prepared data set into memory, checked.

    Args:
      recipe: the data set.
      folder: see `data_folder`.

    Returns:
      Split name to (images uint8 `[n, *shape]`, labels int32 `[n]`).

    Raises:
      DataNotPrepared: at once, without a look at the network.
      DataDamaged: a file is not what was written.
    """
    place = home(recipe, folder)
    if not place.is_dir():
        raise DataNotPrepared(
            f"{recipe.name} is not prepared: {place} does not exist. {recipe.cure}"
        )
    kept = sorted(place.glob("arrays-*.npz"))
    if kept:
        return _read_arrays(recipe, kept[0])
    arrays = read_records(recipe, folder)
    with contextlib.suppress(
        OSError
    ):  # a read-only folder: decoding again next time is slower, not wrong
        _write_arrays(place, arrays)
    return arrays


def prepare(
    recipe: Recipe, arrays: Arrays, folder: PathLike | None = None, progress: bool = True
) -> Path:
    """Writes a data set as array_record files, reads them back and compares.

    A damaged earlier copy is replaced.

    A killed process leaves an `incomplete.*` folder, which is never read; the next call removes it.

    Args:
      recipe: the data set.
      arrays: split name to (images uint8 `[n, *shape]`, labels `[n]`).
      folder: see `data_folder`.
      progress: whether to show a progress bar on stderr.

    Returns:
      The folder of the prepared data.

    Raises:
      OSError: no space, or no right to write; what was half-written is removed.
      DataDamaged: the records read back differ from what was written (a failing disk).
    """
    place = home(recipe, folder)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.parent):
            for leftover in place.parent.glob("incomplete.*"):
                shutil.rmtree(leftover)
            if not _whole(recipe, arrays, folder):
                shutil.rmtree(place, ignore_errors=True)
                require_space(place.parent, sum(images.nbytes for images, _ in arrays.values()))
                _write(recipe, arrays, folder, progress)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"cannot prepare {recipe.name} in {place}: {error.strerror or error}. Nothing was "
            "kept; "
            f"free some space or set DYNEXIT_DATA to another folder.",
        ) from error
    return place


def builder(
    recipe: Recipe,
    folder: PathLike | None = None,
    arrays: Arrays | None = None,
    progress: bool = False,
) -> Builder:
    """The tensorflow-datasets builder, without TensorFlow.

    `as_data_source("train")` reads single records.

    Args:
      recipe: the data set.
      folder: see `data_folder`.
      arrays: what to write; not needed to read.
      progress: whether writing shows a progress bar.
    """
    import tensorflow_datasets as tfds

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = f"dynexit_{recipe.name}"
        VERSION = tfds.core.Version(VERSION)
        pkg_dir_path = tfds.core.Path(__file__).parent

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=recipe.description,
                homepage=recipe.homepage,
                disable_shuffling=True,  # the order of the raw files; `Source.batch` shuffles
                supervised_keys=("image", "label"),
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Tensor(
                            shape=recipe.shape,
                            dtype=np.uint8,
                            encoding=tfds.features.Encoding.BYTES,
                        ),
                        "label": tfds.features.ClassLabel(names=list(recipe.classes)),
                    }
                ),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # nothing is downloaded
            return {split: self._generate_examples(*pair) for split, pair in (arrays or {}).items()}

        def _generate_examples(
            self, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            from tqdm import tqdm

            for row in tqdm(
                range(len(images)), desc=recipe.name, unit="example", disable=not progress
            ):
                yield row, {"image": images[row], "label": int(labels[row])}

    return Written(data_dir=os.fspath(data_folder(folder)), file_format="array_record")


def read_records(recipe: Recipe, folder: PathLike | None = None) -> Arrays:
    """Decodes every record, in the order of the raw files; see `load`.

    It decodes some 25,000 examples a second.
    """
    place = home(recipe, folder)
    cure = f"Run `dynexit data prepare {recipe.name}` to write it again."
    arrays = {}
    try:
        source: Any = builder(recipe, folder)
        for split in source.info.splits:
            rows: Any = source.as_data_source(split)
            found = rows.__getitems__(range(len(rows)))
            arrays[split] = (
                np.stack([row["image"] for row in found]),
                np.array([row["label"] for row in found], np.int32),
            )
    except ImportError:
        raise
    except (
        Exception
    ) as error:  # array_record, protobuf and tfds each raise their own kinds for damage
        raise DataDamaged(f"{place} is damaged: {type(error).__name__}: {error}. {cure}") from error
    if not arrays:
        raise DataDamaged(f"{place} is damaged: it holds no split. {cure}")
    return arrays


def _write(recipe: Recipe, arrays: Arrays, folder: PathLike | None, progress: bool) -> None:
    place = home(recipe, folder)
    try:
        write_records(builder(recipe, folder, arrays, progress))
        if not _same(read_records(recipe, folder), arrays):
            raise DataDamaged(
                f"{place}: the records read back differ from what was written. Check the disk."
            )
        _write_arrays(place, arrays)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def write_records(builder: Builder) -> None:
    """Writes what a builder generates; its folder appears by one rename when it is whole.

    Raises:
      OSError: no space.
    """
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(
        try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
    )
    tfds.disable_progress_bar()  # its bars count shards and splits, ours examples
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download; none happens
            builder.download_and_prepare(download_config=config)
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) in str(error):  # how array_record tells of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _write_arrays(place: Path, arrays: Arrays) -> None:
    """Writes decoded arrays to one file, by a rename; its name is the SHA-256 of its content."""
    leaves = {}
    for split, (images, labels) in arrays.items():
        leaves |= {f"{split}_images": images, f"{split}_labels": np.asarray(labels, np.int32)}
    content = io.BytesIO()
    np.savez(content, **leaves)
    handle, partial = tempfile.mkstemp(dir=place, prefix="partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, place / f"arrays-{hashlib.sha256(content.getbuffer()).hexdigest()}.npz")
    except BaseException:
        os.unlink(partial)
        raise


def _read_arrays(recipe: Recipe, path: Path) -> Arrays:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.stem.removeprefix("arrays-"):
        raise DataDamaged(
            f"{path} is damaged: its content does not match the checksum in its name. "
            f"Run `dynexit data prepare {recipe.name}` to write it again."
        )
    with np.load(io.BytesIO(content)) as leaves:
        splits = [name.removesuffix("_images") for name in leaves.files if name.endswith("_images")]
        return {split: (leaves[f"{split}_images"], leaves[f"{split}_labels"]) for split in splits}


def _whole(recipe: Recipe, arrays: Arrays, folder: PathLike | None) -> bool:
    """Whether the prepared data is there and is, in both forms, what it should be."""
    try:
        return _same(load(recipe, folder), arrays) and _same(read_records(recipe, folder), arrays)
    except (DataNotPrepared, DataDamaged):
        return False


def _same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(x, y) for split in a for x, y in zip(a[split], b[split], strict=True)
    )


def require_space(place: Path, nbytes: int) -> None:
    """Refuses to start where records and arrays of `nbytes` bytes do not both fit.

    Records are at worst a little larger than the arrays.

    Raises:
      OSError: too little space.
    """
    need = int(2.5 * nbytes) + 2**20
    free = shutil.disk_usage(place).free
    if free < need:
        raise OSError(
            errno.ENOSPC,
            f"No space left: {need / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB are free",
        )


@contextlib.contextmanager
def locked(place: Path) -> Generator[None, None, None]:
    """One process at a time; the lock ends with the process."""
    with open(place / ".lock", "w") as file:
        lock(file, wait=True)
        yield
