"""Documents of a folder, assigned to splits file by file."""

import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from dynexit.core.data import SPLITS
from dynexit.data.text.python_source import source_files


class Document(NamedTuple):
    """A text file.

    Attributes:
      path: within the folder, with `/`.
      text: its content.
    """

    path: str
    text: str


Documents: TypeAlias = dict[str, list[Document]]
"""Name of a split to its documents, in the order of their paths."""


def read_documents(
    folder: Path | None,
    suffixes: Sequence[str],
    calibration: float,
    test: float,
    split_seed: int,
) -> Documents:
    """The documents of every split.

    Files without text are left out, as are copies of an earlier file, so that no text is in two
    splits. Hidden folders are not read.

    Args:
      folder: searched with its subfolders; None for the running Python's standard library without
        its tests.
      suffixes: of the files that are read.
      calibration, test: fractions of the files; each split has at least one.
      split_seed: which files fall into which split.

    Returns:
      `Documents`.

    Raises:
      ValueError: fewer than 3 different files, or fractions that leave none to train on.
    """
    if folder is None:
        folder = Path(sysconfig.get_path("stdlib"))
        files = source_files(folder)
    else:
        files = sorted(f for f in folder.rglob("*") if f.suffix in suffixes and f.is_file())
    found: dict[bytes, Document] = {}
    for file in files:
        inner = file.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts):
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            key = hashlib.sha256(text.encode()).digest()
            found.setdefault(key, Document(inner.as_posix(), text))
    documents = list(found.values())
    count = len(documents)
    held, tested = (max(1, round(fraction * count)) for fraction in (calibration, test))
    if count < 3 or held + tested >= count:
        raise ValueError(
            f"`folder` {folder} must have 3 files or more with different text and a suffix among "
            f"{', '.join(suffixes)}, and `calibration` and `test` must leave some to train on; got "
            f"{count} files, {calibration} and {test}"
        )
    order = np.random.Generator(np.random.Philox(split_seed)).permutation(count)
    parts = np.split(order, [count - held - tested, count - tested])
    return {
        split: [documents[k] for k in np.sort(part)]
        for split, part in zip(SPLITS, parts, strict=True)
    }


def digest(documents: Documents, vocabulary: int, tokenizer: str = "") -> str:
    """The documents, their splits, vocabulary and tokenizer in 16 hexadecimal digits."""
    found = hashlib.sha256(f"{vocabulary}{tokenizer}".encode())
    for split, members in documents.items():
        for path, text in members:
            for part in (split, path, text):
                encoded = part.encode()
                found.update(len(encoded).to_bytes(8, "little") + encoded)
    return found.hexdigest()[:16]
