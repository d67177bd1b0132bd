"""Floor 5: the `dynexit` command."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.cli.main import main
    from dynexit.cli.trained import Trained, trained

__all__ = ["Trained", "main", "trained"]

__getattr__, __dir__ = attach(__name__, {"Trained": "trained", "main": "main", "trained": "trained"})
