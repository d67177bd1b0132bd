"""Single characters as tokens, for models that were trained on a few characters."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Characters:
    """Token k is the k-th character.

    Example:
      >>> letters = Characters(("a", "b", "?"), unknown="?")
      >>> letters.encode("abc"), letters.decode([0, 1])
      ([0, 1, 2], 'ab')
    """

    characters: tuple[str, ...]
    """one for each id"""
    unknown: str | None = None
    """what other characters are read as; None: they are an error"""

    @property
    def vocabulary(self) -> int:
        """The number of characters."""
        return len(self.characters)

    @property
    def stop(self) -> tuple[int, ...]:
        """None: no character ends a text."""
        return ()

    @property
    def special(self) -> dict[str, int]:
        """None: all tokens are text."""
        return {}

    def encode(self, text: str) -> list[int]:
        """The id of each character.

        Raises:
          ValueError: a character that is none of them, where there is no `unknown`.
        """
        ids = {character: k for k, character in enumerate(self.characters)}
        other = ids.get(self.unknown) if self.unknown is not None else None
        found = [ids.get(character, other) for character in text]
        if None in found:
            raise ValueError(
                f"`text` must consist of {len(ids)} known characters, got "
                f"{text[found.index(None)]!r}"
            )
        return [k for k in found if k is not None]

    def decode(self, tokens: Iterable[int]) -> str:
        """The characters."""
        return "".join(self.characters[int(token)] for token in tokens)
