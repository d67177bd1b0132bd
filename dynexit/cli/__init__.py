"""The `dynexit` command."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.cli.main import main as main

__getattr__, __dir__ = attach(__name__)
