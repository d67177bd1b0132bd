"""Bytes of UTF-8 as tokens: no file and no library is needed."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Bytes:
    """The bytes of UTF-8 are ids 0..255, and 256 ends a text.

    Example:
      >>> Bytes().encode("hé"), Bytes().decode([104, 195, 169, 256])
      ([104, 195, 169], 'hé')
    """

    vocabulary: int = dataclasses.field(default=257, init=False)

    @property
    def stop(self) -> tuple[int, ...]:
        """The end of a text."""
        return (256,)

    @property
    def special(self) -> dict[str, int]:
        """The end of a text."""
        return {"<end>": 256}

    def encode(self, text: str) -> list[int]:
        """Its bytes."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text; wrong bytes become U+FFFD, and ids above 255 are left out."""
        return bytes(t for t in map(int, tokens) if t < 256).decode("utf-8", errors="replace")
