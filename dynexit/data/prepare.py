"""`dynexit data prepare NAME`: the only code that may use the network; it reports so before."""

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path

from dynexit.data import store
from dynexit.data.vision import digits, fashion_mnist

PREPARABLE = ("digits", "fashion_mnist")

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
"""Where the authors of Fashion-MNIST put the four files; plain http, so what comes is believed only
by its SHA-256.
"""

PATIENCE = 4.0
"""Seconds to wait for the first answer of the server."""


def prepare(
    name: str,
    raw: store.PathLike | None = None,
    folder: store.PathLike | None = None,
    progress: bool = True,
) -> Path:
    """Writes a data set into the data folder, where `digits()` and `fashion_mnist()` read it.

    The raw files of Fashion-MNIST are taken from `raw`, where it is given; else from where Debian's
    package `dataset-fashion-mnist` puts them; else they are downloaded (30 MB), after a line on
    stderr that says so. Existing prepared data is checked, and kept if it is intact.

    Args:
      name: "digits" or "fashion_mnist".
      raw: folder with the published files of Fashion-MNIST, each plain or as `.gz`; digits need
        none.
      folder: where to write, see `dynexit.data.store.data_folder`.
      progress: whether to show progress bars on stderr.

    Returns:
      The folder of the prepared data.

    Raises:
      ValueError: an unknown `name`, or `raw` for digits.
      DataNotPrepared: a raw file is missing, or the server does not answer within seconds.
      DataDamaged: a raw file does not hold what was published.
      OSError: no space, or no right to write.
    """
    if name not in PREPARABLE:
        raise ValueError(f"`name` must be one of {', '.join(PREPARABLE)}, got {name!r}.")
    if name == "digits":
        if raw is not None:
            raise ValueError(
                "`raw` must not be given for digits, which come with scikit-learn, got "
                f"{os.fspath(raw)!r}."
            )
        return store.prepare(digits.RECIPE, digits.read_raw(), folder, progress)
    with _raw_folder(raw, progress) as found:
        arrays = fashion_mnist.read_raw(found)
    return store.prepare(fashion_mnist.RECIPE, arrays, folder, progress)


@contextlib.contextmanager
def _raw_folder(raw: store.PathLike | None, progress: bool) -> Generator[Path, None, None]:
    if raw is not None:
        yield Path(raw)
    elif fashion_mnist.has_raw(fashion_mnist.DEBIAN):
        yield fashion_mnist.DEBIAN
    else:
        with tempfile.TemporaryDirectory(prefix="dynexit-") as place:
            _download(Path(place), progress)
            yield Path(place)


def _download(place: Path, progress: bool) -> None:
    from tqdm import tqdm

    print(
        f"Fashion-MNIST is not on this machine: downloading 30 MB from {URL}",
        file=sys.stderr,
        flush=True,
    )
    _require_answer()
    for name in fashion_mnist.RAW:
        try:
            with (
                urllib.request.urlopen(f"{URL}{name}.gz", timeout=30) as response,
                tqdm.wrapattr(
                    response, "read", total=response.length, desc=name, disable=not progress
                ) as reader,
                open(place / f"{name}.gz", "wb") as file,
            ):
                shutil.copyfileobj(reader, file)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise store.DataNotPrepared(
                f"{URL}{name}.gz cannot be downloaded: {error}. {_OFFLINE}"
            ) from error


_OFFLINE = (
    "Without a network: `apt install dataset-fashion-mnist`, or give the folder of the four files "
    "with `--raw FOLDER`."
)


def _require_answer() -> None:
    """Raises within seconds where there is no network.

    It runs in a thread, because a name look-up has no time limit.
    """
    problems: list[str] = ["no answer"]

    def ask() -> None:
        request = urllib.request.Request(f"{URL}{next(iter(fashion_mnist.RAW))}.gz", method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE):
                problems.clear()
        except OSError as error:
            problems[0] = str(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE + 0.5)
    if problems:
        raise store.DataNotPrepared(f"{URL} cannot be reached: {problems[0]}. {_OFFLINE}")
