"""Text as token ids: bytes, or byte pairs merged by frequency."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynexit.data.host_shapes import Int
from dynexit.data.tokenizers.subwords import library, trained_pairs

if TYPE_CHECKING:
    from dynexit.data.tokenizers.tokenizer import Tokenizer

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

    def tokenizer(self) -> "Tokenizer":
        """The same ids as one of `dx.data.tokenizers`; the end of a document ends a text."""
        from dynexit.data.tokenizers.bytes import Bytes
        from dynexit.data.tokenizers.subwords import with_end

        return Bytes() if self.pairs is None else with_end(self.pairs, self.end)


def trained_codec(texts: Iterable[str], vocabulary: int) -> Codec:
    """A codec whose byte pairs are merged by their frequency in the texts.

    Raises:
      ImportError: a vocabulary above 257 and no `tokenizers`.

    Source: Sennrich et al. 2016, arXiv 1508.07909, on bytes as in GPT-2, by the library tokenizers.
    """
    if vocabulary == BYTES:
        return Codec(vocabulary)
    return Codec(vocabulary, trained_pairs(_library(), texts, vocabulary - 1))


def read_codec(path: Path, vocabulary: int, last: int | None = None) -> Codec:
    """The codec of a `tokenizer.json`."""
    return Codec(vocabulary, _library().Tokenizer.from_file(str(path)), last)


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


def _library() -> Any:
    try:
        return library()
    except ImportError as error:
        raise ImportError(
            "a `vocabulary` of more than 257 tokens needs the library tokenizers; "
            "`pip install tokenizers`, or take 257, single bytes"
        ) from error
