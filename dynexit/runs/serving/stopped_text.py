"""Text that ends before the first of some strings."""

from collections.abc import Sequence
from typing import NamedTuple

from dynexit.data.tokenizers.tokenizer import TextStream, Tokenizer


class TokenRecord(NamedTuple):
    """One token of a completion.

    Attributes:
      text: of the token alone.
      offset: characters of the text before it.
      log_probability: ln p in nats.
    """

    text: str
    offset: int
    log_probability: float


class Part(NamedTuple):
    """New text of a completion, with the tokens that begin in it."""

    text: str
    tokens: list[TokenRecord]


class StoppedText:
    """Text of tokens, up to the first of some strings; what may begin one is held back.

    Args:
      tokenizer: decodes.
      stops: strings that end the text and are not part of it.

    Example:
      >>> from dynexit.data.tokenizers.bytes import Bytes
      >>> text = StoppedText(Bytes(), ["end"])
      >>> [text.push(byte, 0.0) for byte in b"an en"], text.take().text
      ([False, False, False, False, False], 'an ')
      >>> text.push(ord("d"), 0.0), text.take(last=True).text
      (True, '')
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stream = tokenizer, TextStream(tokenizer)
        self._stops = list(stops)
        self._text, self._shown = "", 0
        self._pending: list[TokenRecord] = []
        self.stopped = False

    def push(self, token: int, log_probability: float) -> bool:
        """Adds a token; returns whether a string has ended the text."""
        own = self._tokenizer.decode([token])
        self._pending.append(TokenRecord(own, len(self._text), log_probability))
        return self._add(self._stream.push(token))

    def take(self, last: bool = False) -> Part:
        """The text that no string can end any more; all of it where it is the last."""
        if last and not self.stopped:
            self._add(self._stream.finish())
        whole = last or self.stopped
        until = len(self._text) if whole else len(self._text) - self._held()
        text = self._text[self._shown : until]
        self._shown = max(self._shown, until)
        every = last and not self.stopped
        taken = [t for t in self._pending if every or t.offset < until]
        self._pending = [t for t in self._pending if not every and t.offset >= until]
        return Part(text, taken)

    def _add(self, piece: str) -> bool:
        start = len(self._text)
        self._text += piece
        found = [
            at
            for stop in self._stops
            if (at := self._text.find(stop, max(0, start - len(stop) + 1))) >= 0
        ]
        if found:
            self._text, self.stopped = self._text[: min(found)], True
        return self.stopped

    def _held(self) -> int:
        """Characters at the end that may begin a string."""
        sizes = (
            n for stop in self._stops for n in range(1, len(stop)) if self._text.endswith(stop[:n])
        )
        return max(sizes, default=0)
