"""Fashion-MNIST: 70,000 real 28x28 pictures of clothes, from the four published idx files."""

import functools
import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from dynexit.core.data import Dataset, Source, Splits
from dynexit.core.settings import refuse_invalid
from dynexit.data import store
from dynexit.data.host_shapes import Num
from dynexit.data.source import from_arrays
from dynexit.data.vision.settings import FashionMnist

FASHION_MNIST_CLASSES = FashionMnist.classes

FASHION_MNIST_MEAN, FASHION_MNIST_STD = 0.2861, 0.3530
"""Of the training split, as fractions of 255."""

CALIBRATION = 5000

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts the four files."""

RECIPE = store.Recipe(
    name="fashion_mnist",
    shape=(28, 28, 1),
    classes=FASHION_MNIST_CLASSES,
    description="Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747): 70,000 grey "
    "pictures of 10 kinds.",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    cure=(
        "Run `dynexit data prepare fashion_mnist`: it takes the files of Debian's package "
        "(`apt install dataset-fashion-mnist`), or those in a folder of yours (`--raw FOLDER`), or "
        "else downloads them."
    ),
)

# SHA-256 of the decompressed files: the gzip headers differ between distributors, the content does
# not.
RAW = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def fashion_mnist(folder: store.PathLike | None = None) -> Splits:
    """Fashion-MNIST as `train` (55,000), `calibration` (5,000) and `test` (10,000).

    The calibration split is held out of the training set.

    Args:
      folder: where the prepared data lives, see `dynexit.data.store.data_folder`.

    Returns:
      Three sources; inputs uint8 `[b, 28, 28, 1]`, labels int32 `[b]`, 0..9. The splits are the
      same in every run.

    Raises:
      DataNotPrepared: at once, with what to do; nothing is ever downloaded from here.
      DataDamaged: a prepared file is not what was written.

    Example: `train, calibration, test = fashion_mnist(); train.batch(0, 0, 128)["inputs"].shape ==
      (128, 28, 28, 1)`
    """
    arrays = store.load(RECIPE, folder)
    return hold_out(arrays["train"], arrays["test"], CALIBRATION)


def dataset(settings: FashionMnist) -> Dataset:
    """The data set of `dx.data.FashionMnist`."""
    from dynexit.data.augment import chain, random_crop, random_flip, to_float

    refuse_invalid(settings)
    train, calibration, test = (_first(source, settings.limit) for source in fashion_mnist())
    return Dataset(
        train,
        calibration,
        test,
        settings.inputs,
        settings.classes,
        augment=chain(functools.partial(random_crop, padding=settings.shift), random_flip),
        prepare=functools.partial(to_float, maximum=255.0, mean=0.286, std=0.353),
    )


def _first(source: Source, count: int | None) -> Source:
    """The first `count` examples of a split, or all of them."""
    if count is None:
        return source
    whole = source.examples()
    return from_arrays(source.split, whole["inputs"][:count], whole["labels"][:count])


def hold_out(train: store.Pair, test: store.Pair, calibration: int) -> Splits:
    """Three sources from two published splits; calibration rows are taken from the training set.

    A fixed shuffle selects them.

    Args:
      train, test: (images `[n, ...]`, labels `[n]`).
      calibration: rows to hold out, 1..n-1.
    """
    images, labels = train
    if not 0 < calibration < len(labels):
        raise ValueError(f"`calibration` must lie in 1..{len(labels) - 1}, got {calibration}.")
    order = np.random.Generator(np.random.Philox(1708_07747)).permutation(len(labels))
    held, kept = np.sort(order[:calibration]), np.sort(order[calibration:])
    return Splits(
        from_arrays("train", images[kept], labels[kept]),
        from_arrays("calibration", images[held], labels[held]),
        from_arrays("test", *test),
    )


def fashion_mnist_builder(folder: store.PathLike | None = None) -> store.Builder:
    """The tensorflow-datasets builder of the data: "train" (60,000), "test" (10,000).

    The splits are those published.
    """
    return store.builder(RECIPE, folder)


def has_raw(folder: store.PathLike) -> bool:
    """Whether all four idx files are in `folder`, each plain or as `.gz`."""
    return all(_raw_file(Path(folder), name) is not None for name in RAW)


def read_raw(folder: store.PathLike) -> store.Arrays:
    """Reads the four idx files, each plain or as `.gz`, and checks the SHA-256 of what they hold.

    Args:
      folder: where they are.

    Returns:
      {"train": (images uint8 `[60000, 28, 28, 1]`, labels int32 `[60000]`), "test": ...}.

    Raises:
      DataNotPrepared: a file is missing.
      DataDamaged: a file does not hold what was published.
    """
    return {
        "train": _pair(Path(folder), "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": _pair(Path(folder), "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    }


def parse_idx(content: bytes) -> Num[np.ndarray, "..."]:
    """Decodes an idx file of unsigned bytes.

    The file holds two zeros, the type 8, the rank, big-endian int32 sizes, then the values.

    Args:
      content: the decompressed file.

    Returns:
      uint8, of the shape that the file states.

    Raises:
      ValueError: not an idx file of bytes, or of another length than its header states.

    Example:
      >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])).tolist()
      [7, 8, 9]
    """
    if content[:3] != b"\x00\x00\x08" or len(content) < 4:
        raise ValueError(
            "`content` must be an idx file of unsigned bytes, got the first bytes "
            f"{content[:4].hex(' ')}."
        )
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">i4").tolist())
    if len(content) - start != int(np.prod(shape)):
        raise ValueError(
            f"`content` must hold {shape} = {int(np.prod(shape))} values, got "
            f"{len(content) - start}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _pair(folder: Path, images: str, labels: str) -> store.Pair:
    return parse_idx(_content(folder, images))[..., None], parse_idx(
        _content(folder, labels)
    ).astype(np.int32)


def _raw_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _content(folder: Path, name: str) -> bytes:
    path = _raw_file(folder, name)
    if path is None:
        raise store.DataNotPrepared(
            f"{folder} has neither {name}.gz nor {name}; the four idx files of Fashion-MNIST are "
            "wanted."
        )
    cure = "Get the file again, for instance by `apt install --reinstall dataset-fashion-mnist`."
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise store.DataDamaged(f"{path} is damaged: {error}. {cure}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != RAW[name]:
        raise store.DataDamaged(
            f"{path} is damaged: the SHA-256 of its content is {found}, {RAW[name]} was published. "
            f"{cure}"
        )
    return content
