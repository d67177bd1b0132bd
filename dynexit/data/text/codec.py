"""Text as token ids: bytes, or byte pairs merged by frequency."""

import dataclasses
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dynexit.data.host_shapes import Int

Ids: TypeAlias = Int[np.ndarray, "_"]

BYTES = 257
"""The vocabulary of single bytes: 256, and the end of a document."""


@dataclasses.dataclass(frozen=True)
class Codec:
    """Text to token ids and back.

    With a vocabulary of 257 the ids are the bytes of UTF-8. The id `end` ends a document and stands
    for no text.

    Attributes:
      vocabulary: V.
      pairs: a `tokenizers.Tokenizer`, or None for bytes.
      last: the id that ends a document; None for V - 1.

    Example:
      >>> codec = Codec(257)
      >>> codec.encode("hi").tolist(), codec.decode(codec.encode("hi")), codec.end
      ([104, 105], 'hi', 256)
    """

    vocabulary: int
    pairs: Any = None
    last: int | None = None

    @property
    def end(self) -> int:
        """The id of the end of a document."""
        return self.vocabulary - 1 if self.last is None else self.last

    def encode(self, text: str) -> Ids:
        """The ids of a text, int32 `[n]`, without an end."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of several texts."""
        if self.pairs is None:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]
        return [np.array(found.ids, np.int32) for found in self.pairs.encode_batch(list(texts))]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids `[n]`; ends are left out, and bytes that are no UTF-8 replaced."""
        kept = [int(k) for k in ids if 0 <= k < self.vocabulary and k != self.end]
        if self.pairs is None:
            return bytes(kept).decode("utf-8", errors="replace")
        return self.pairs.decode(kept, skip_special_tokens=False)


@dataclasses.dataclass(frozen=True)
class CodecTokenizer:
    """A codec as `dx.data.tokenizers.Tokenizer`; the end of a document ends a text.

    Example:
      >>> words = CodecTokenizer(Codec(257))
      >>> words.encode("hi"), words.decode([104, 105, 256]), words.stop
      ([104, 105], 'hi', (256,))
    """

    codec: Codec

    @property
    def vocabulary(self) -> int:
        """V, with the end."""
        return self.codec.vocabulary

    @property
    def stop(self) -> tuple[int, ...]:
        """The end of a document."""
        return (self.codec.end,)

    @property
    def special(self) -> dict[str, int]:
        """The end of a document."""
        return {"<end>": self.codec.end}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without an end."""
        return self.codec.encode(text).tolist()

    def decode(self, tokens: Iterable[int]) -> str:
        """The text; ends are left out."""
        return self.codec.decode(list(tokens))


def trained_codec(texts: Iterable[str], vocabulary: int) -> Codec:
    """A codec whose byte pairs are merged by their frequency in the texts.

    Raises:
      ImportError: a vocabulary above 257 and no `tokenizers`.

    Source: Sennrich et al. 2016, arXiv 1508.07909, on bytes as in GPT-2, by the library tokenizers.
    """
    if vocabulary == BYTES:
        return Codec(vocabulary)
    library = _tokenizers()
    pairs = library.Tokenizer(library.models.BPE())
    level = library.pre_tokenizers.ByteLevel
    pairs.pre_tokenizer = level(add_prefix_space=False)
    pairs.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary - 1, initial_alphabet=level.alphabet(), show_progress=False
    )
    pairs.train_from_iterator(texts, trainer)
    return Codec(vocabulary, pairs)


def read_codec(path: Path, vocabulary: int, last: int | None = None) -> Codec:
    """The codec of a `tokenizer.json`."""
    return Codec(vocabulary, _tokenizers().Tokenizer.from_file(str(path)), last)


def given_codec(folder: Path, vocabulary: int) -> Codec:
    """The codec of a model's folder; its first stop token ends a document.

    Raises:
      ValueError: the tokenizer has no stop token, or more tokens than the vocabulary.
    """
    from dynexit.data.tokenizers.subwords import from_folder
    from dynexit.data.tokenizers.tokenizer import refuse_unfit

    tokenizer = from_folder(folder)
    refuse_unfit(tokenizer, vocabulary)
    if not tokenizer.stop:
        raise ValueError(f"`tokenizer` {folder} must name a token that ends a text, got none")
    return read_codec(folder / "tokenizer.json", vocabulary, tokenizer.stop[0])


def _tokenizers() -> Any:
    names = ("decoders", "models", "pre_tokenizers", "trainers")
    try:
        for name in names:
            importlib.import_module(f"tokenizers.{name}")
    except ImportError as error:
        raise ImportError(
            "a `vocabulary` of more than 257 tokens needs the library tokenizers; "
            "`pip install tokenizers`, or take 257, single bytes"
        ) from error
    return importlib.import_module("tokenizers")
