"""Constructors of the text data sets; neither JAX nor numpy is loaded before `build`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dynexit.core.data import SPLITS, Dataset, Tokens
from dynexit.core.settings import at_least, valid_seed
from dynexit.data.tokenizers.characters import Characters

if TYPE_CHECKING:
    from dynexit.data.text.stored import Corpus
    from dynexit.data.tokenizers.tokenizer import Tokenizer


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

    def text_tokenizer(self) -> Characters:
        """The tokens of the data; `dynexit generate` reads prompts with it."""
        return Characters(self.classes, unknown="?")

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


@dataclasses.dataclass(frozen=True)
class TextDocuments:
    """Text files, packed into windows of tokens; the label of each token is the next one.

    Files are assigned to the splits whole. Tokens do not attend to other documents of their window
    ("segments"), and the last token of a document has no label. A document is tokenised once: the
    ids are stored in the data folder as array_record files, see `dynexit.data.store`.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as place:
      ...     folder = pathlib.Path(place)
      ...     for k in range(4):
      ...         _ = (folder / f"{k}.txt").write_text(f"This is file number {k}.")
      ...     data = TextDocuments(folder, vocabulary=257, length=8, stored=folder)
      ...     batch = data.build().train.batch(0, 0, 2)
      >>> batch["inputs"]["tokens"].shape, data.inputs
      ((2, 8), Tokens(vocabulary=257, length=8))
    """

    folder: Path | None = None
    """searched for files with its subfolders; None: the running Python's standard library"""
    suffixes: tuple[str, ...] = (".py", ".md", ".rst", ".txt")
    """of the files of `folder` that are read"""
    vocabulary: int = 4096
    """tokens V: 257 for bytes and the end of a document; above, byte pairs of the training split,
    for which the library tokenizers is needed
    """
    tokenizer_folder: Path | None = None
    """a folder with the `tokenizer.json` of a model; None to count byte pairs, see `vocabulary`"""
    length: int = 256
    """tokens of a window"""
    examples: int | None = 256
    """windows of the calibration and of the test split at most, evenly spread; None for all"""
    calibration: float = 0.05
    """fraction of the files in the calibration split"""
    test: float = 0.05
    """fraction of the files in the test split"""
    split_seed: int = 0
    """which files fall into which split; keep it to compare runs"""
    stored: Path | None = None
    """folder of the tokens; None: that of all data sets"""

    def __post_init__(self) -> None:
        for name in ("folder", "stored", "tokenizer_folder"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, Path(value))

    @property
    def inputs(self) -> Tokens:
        """Token ids."""
        return Tokens(self.vocabulary, self.length)

    @property
    def classes(self) -> tuple[str, ...]:
        """ "0" to "V - 1"."""
        return tuple(map(str, range(self.vocabulary)))

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "length") + at_least(self, 257, "vocabulary")
        found += at_least(self, 1, "examples") if self.examples is not None else []
        if not (self.calibration > 0 and self.test > 0 and self.calibration + self.test < 1):
            found.append(
                "calibration and test must be above 0 and leave files to train on, "
                f"got {self.calibration} and {self.test}"
            )
        if self.folder is not None and not self.folder.is_dir():
            found.append(f"folder must be a folder, got {str(self.folder)!r}")
        return found + [s.replace("seed", "split_seed", 1) for s in valid_seed(self.split_seed)]

    def corpus(self) -> "Corpus":
        """The tokenised documents of every split, and the `codec` of their ids.

        Raises:
          ValueError: a field out of range, or too few files.
          ImportError: a vocabulary above 257 without tokenizers.
        """
        from dynexit.core.settings import refuse_invalid
        from dynexit.data.text.documents import read_documents
        from dynexit.data.text.stored import corpus

        refuse_invalid(self)
        documents = read_documents(
            self.folder, self.suffixes, self.calibration, self.test, self.split_seed
        )
        return corpus(documents, self.vocabulary, self.stored, self.tokenizer_folder)

    def text_tokenizer(self) -> "Tokenizer":
        """The tokens of the data; `dynexit generate` reads prompts with it.

        The documents are read where their byte pairs are needed alone.

        Raises:
          ValueError, ImportError: as `corpus`.
        """
        from dynexit.data.tokenizers.bytes import Bytes
        from dynexit.data.tokenizers.subwords import from_folder

        if self.tokenizer_folder is not None:
            return from_folder(self.tokenizer_folder)
        return Bytes() if self.vocabulary == 257 else self.corpus().codec.tokenizer()

    def build(self) -> Dataset:
        """The splits; inputs "tokens" and "segments" and labels, int32 `[b, length]`.

        Raises:
          ValueError, ImportError: as `corpus`, or too little text for a window.
        """
        from dynexit.data.text.packing import packed

        found = self.corpus().splits
        limits = {"train": None, "calibration": self.examples, "test": self.examples}
        sources = (packed(name, found[name], self.length, limits[name]) for name in SPLITS)
        train, calibration, test = sources
        return Dataset(train, calibration, test, self.inputs, self.classes)
