"""Python's standard library as text, for small language models."""

import functools
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from dynexit.core.data import SPLITS, Source, Splits
from dynexit.data.host_shapes import Num
from dynexit.data.source import Batch, from_leaves
from dynexit.data.tasks.procedural import at_least

VOCABULARY = 128
"""ASCII; other characters are read as `?`."""

_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__")


def python_source(length: int, examples: int = 500, folder: Path | None = None) -> Splits:
    """Windows of Python source; the label of each character is the next one.

    Files are assigned to the splits by their order (test: every twentieth file, and so on), so that
    no file is in two. They differ between versions of Python; the numbers of an experiment name
    the version.

    Args:
      length: L, characters of a window.
      examples: windows in `calibration` and in `test`, evenly spread over their text.
      folder: where the `.py` files are; by default the running Python's standard library, without
        its tests.

    Returns:
      Three sources; inputs int32 `[b, L]` in 0..127, labels int32 `[b, L]`, the characters that
      follow. `train.batch(seed, step, size)` draws new windows; `train.examples()` are as many
      as those of the other splits.

    Raises:
      ValueError: `length` or `examples` below 1, or too little text in the folder.

    Example:
      >>> batch = python_source(32).train.batch(0, 7, 4)
      >>> np.array_equal(batch["inputs"][:, 1:], batch["labels"][:, :-1])
      True
    """
    at_least(1, length=length, examples=examples)
    folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    text = _texts(folder)
    for split, characters in text.items():
        if len(characters) <= length + examples:
            raise ValueError(
                f"`folder` {folder} has {len(characters)} characters for {split}, too few for "
                f"windows of {length}."
            )
    fixed = {split: _evenly(split, text[split], length, examples) for split in SPLITS}

    def batch(seed: int, step: int, size: int) -> Batch:
        at_least(0, seed=seed, step=step)
        at_least(1, size=size)
        random = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64)))
        return _windows(
            text["train"], random.integers(0, len(text["train"]) - length, size), length
        )

    train = Source("train", batch, fixed["train"].examples, None)
    return Splits(train, fixed["calibration"], fixed["test"])


def decoded(tokens: Num[Any, "L"]) -> str:
    """The text of tokens `[L]`.

    Example:
      >>> decoded(np.array([104, 105]))
      'hi'
    """
    return bytes(np.asarray(tokens, np.uint8)).decode("ascii")


def source_files(folder: Path) -> list[Path]:
    """The `.py` files of a library without its tests, in order."""
    return sorted(
        f for f in folder.rglob("*.py") if not set(f.relative_to(folder).parts) & set(_LEFT_OUT)
    )


@functools.lru_cache(maxsize=4)
def _texts(folder: Path) -> dict[str, np.ndarray]:
    """The characters of every split, uint8 `[characters]`."""
    files = source_files(folder)
    parts: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for k, file in enumerate(files):
        split = {0: "test", 10: "calibration"}.get(k % 20, "train")
        parts[split].append(
            file.read_text(encoding="utf-8", errors="replace").encode("ascii", errors="replace")
        )
    return {split: np.frombuffer(b"\n".join(texts), np.uint8) for split, texts in parts.items()}


def _evenly(split: str, text: np.ndarray, length: int, examples: int) -> Source:
    starts = np.linspace(0, len(text) - length - 1, examples).astype(np.int64)
    return from_leaves(split, _windows(text, starts, length))


def _windows(text: np.ndarray, starts: np.ndarray, length: int) -> Batch:
    characters = text[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    return {"inputs": characters[:, :-1], "labels": characters[:, 1:]}
