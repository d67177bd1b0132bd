"""Constructors of the text data sets; neither JAX nor numpy is loaded before `build`."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from dynexit.core.data import Dataset, Tokens
from dynexit.core.settings import at_least


@dataclasses.dataclass(frozen=True)
class PythonSource:
    """Windows of Python source; the label of each character is the next one.

    See `dynexit.data.text.python_source`.

    Example:
      >>> PythonSource(length=16, examples=5).build().inputs
      Tokens(vocabulary=128, length=16)
    """

    length: int = 64
    """characters of a window"""
    examples: int = 400
    """windows of the calibration and of the test split"""
    folder: Path | None = None
    """where the .py files are; None: the running Python's standard library"""

    classes: ClassVar[tuple[str, ...]] = tuple(map(chr, range(128)))

    @property
    def inputs(self) -> Tokens:
        """ASCII characters."""
        return Tokens(128, self.length)

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "length", "examples")
        if self.folder is not None and not self.folder.is_dir():
            found.append(f"folder must be a folder, got {str(self.folder)!r}")
        return found

    def build(self) -> Dataset:
        """The splits; inputs and labels int32 `[b, length]`.

        Raises:
          ValueError: a field out of range, or too little text in the folder.
        """
        from dynexit.core.settings import refuse_invalid
        from dynexit.data.text.python_source import python_source

        refuse_invalid(self)
        splits = python_source(self.length, self.examples, self.folder)
        return Dataset(*splits, self.inputs, self.classes)
