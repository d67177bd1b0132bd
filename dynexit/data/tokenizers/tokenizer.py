"""What a tokenizer offers, and text that is decoded token by token."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

UNFINISHED = "\ufffd"  # what an unfinished character is decoded to


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
      vocabulary: ids are 0..vocabulary-1.
      stop: ids at which generation stops.
      special: name -> id of the tokens that are no text.
    """

    @property
    def vocabulary(self) -> int:
        """Ids are below it."""
        ...

    @property
    def stop(self) -> tuple[int, ...]:
        """Ids at which generation stops."""
        ...

    @property
    def special(self) -> dict[str, int]:
        """Name -> id of the tokens that are no text."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens at its ends."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ids; special tokens are left out, wrong bytes become U+FFFD."""
        ...


def refuse_unfit(tokenizer: Tokenizer, vocabulary: int) -> None:
    """Raises where a tokenizer has ids that a model does not have.

    Models may have more ids than their tokenizer: the embedding is often padded.

    Args:
      tokenizer: any.
      vocabulary: V of the model.

    Raises:
      ValueError: both sizes are named.

    Example:
      >>> from dynexit.data.tokenizers.bytes import Bytes
      >>> refuse_unfit(Bytes(), 100)
      Traceback (most recent call last):
        ...
      ValueError: `tokenizer` has 257 tokens, and the model only 100; they do not belong together
    """
    if tokenizer.vocabulary > vocabulary:
        raise ValueError(
            f"`tokenizer` has {tokenizer.vocabulary} tokens, and the model only {vocabulary}; "
            "they do not belong together"
        )


class TextStream:
    """The text of tokens that arrive one after the other.

    A character may take several tokens; it is returned with the last of them. All pieces and
    `finish()` together are `tokenizer.decode` of all tokens.

    Args:
      tokenizer: decodes.

    Example:
      >>> from dynexit.data.tokenizers.bytes import Bytes
      >>> stream = TextStream(Bytes())
      >>> [stream.push(byte) for byte in "né".encode()]
      ['n', '', 'é']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # since the start of the last piece, which is context
        self._shown = 0  # tokens whose text was returned
        self._text = ""  # of those

    def push(self, token: int) -> str:
        """The text that one more token completes."""
        self._tokens.append(int(token))
        text = self._tokenizer.decode(self._tokens)
        return "" if text.endswith(UNFINISHED) else self._piece(text)

    def finish(self) -> str:
        """What is left: U+FFFD for characters that were not finished."""
        return self._piece(self._tokenizer.decode(self._tokens))

    def _piece(self, text: str) -> str:
        """The new part of `text`; the tokens before it are dropped."""
        new = text[len(self._text) :]
        self._tokens = self._tokens[self._shown :]
        self._shown = len(self._tokens)
        self._text = self._tokenizer.decode(self._tokens)
        return new
