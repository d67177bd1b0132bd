"""Text on a terminal, each token in the colour of its depth."""

import sys
from typing import Any

from dynexit.evaluation.reports.depth_html import depth_colour
from dynexit.runs.generation.writing import Piece, Summary


class Printer:
    """Prints a text while it is written; without a terminal it is plain.

    Args:
      deepest: blocks of the model.
      colour: whether colours are wanted where the output is a terminal.
      console: of rich; None for the standard output.
    """

    def __init__(self, deepest: int, colour: bool = True, console: Any = None) -> None:
        from rich.console import Console

        self.deepest = deepest
        self.console = Console(highlight=False) if console is None else console
        self.colour = colour and self.console.is_terminal

    def prompt(self, text: str) -> None:
        """Prints what the text continues, on a terminal alone."""
        if self.console.is_terminal:
            self._print(text, "dim" if self.colour else "")

    def piece(self, piece: Piece) -> None:
        """Prints what one token adds."""
        if piece.text:
            self._print(piece.text, self._style(piece.depth))

    def summary(self, summary: Summary, drafts: bool) -> None:
        """Ends the text, and prints to the standard error what it took."""
        from rich.console import Console
        from rich.text import Text

        self._print("\n", "")
        words = Text()
        for depth, count in summary.depths.items():
            words.append(f"depth {depth}", self._style(depth)).append(f": {count}   ")
        if summary.depths:
            words.append("\n")
        words.append(
            f"{summary.tokens} tokens ({summary.reason}), {summary.tokens_per_second:.1f} tokens/s"
            f" after {summary.compile_seconds:.1f} s of compilation, "
            f"mean depth {summary.mean_depth:.2f} of {self.deepest}"
        )
        if drafts:
            words.append(
                f", {summary.accepted_per_round:.2f} accepted drafts a round "
                f"({summary.accepted} of {summary.drafted})"
            )
        work = summary.work
        if work is not None:
            words.append(
                f", {work.probes / max(1, work.tokens):.2f} exits read a token "
                f"({work.probe_blocks:.2f} blocks), keys and values of skipped blocks "
                f"{work.cache_blocks:.2f} blocks a token"
            )
        Console(file=sys.stderr, highlight=False, no_color=not self.colour, soft_wrap=True).print(
            words
        )

    def _style(self, depth: int) -> str:
        colour = depth_colour(depth, self.deepest, 0.6)
        return "rgb({},{},{})".format(*colour) if self.colour else ""

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        if not self.console.is_terminal:
            self.console.file.write(text)
        else:
            shown = "".join(c if c in "\n\t" or c.isprintable() else "?" for c in text)
            self.console.print(Text(shown, style), end="", soft_wrap=True)
        self.console.file.flush()
