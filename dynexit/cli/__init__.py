"""Floor 5: the `dynexit` command."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.cli.main import main

__all__ = ["main"]

__getattr__, __dir__ = attach(__name__, {"main": "main"})
