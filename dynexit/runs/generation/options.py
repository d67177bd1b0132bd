"""Drafts and exits from the words of a command line."""

from typing import Any

from dynexit.decoding.drafts import Draft, EarlyExit, PromptLookup
from dynexit.decoding.exits.settings import Exits
from dynexit.runs.experiment_file import SettingsError

DRAFTS = ("none", "early_exit", "prompt_lookup")


def draft_of(kind: str, exit: int | None = None, tokens: int | None = None) -> Draft | None:
    """The drafts of a name.

    Args:
      kind: "none", "early_exit" or "prompt_lookup".
      exit: blocks that draft, for "early_exit".
      tokens: drafts of a round; None for the default of the kind.

    Raises:
      SettingsError: another kind, or an option that does not belong to it.

    Example:
      >>> draft_of("early_exit", 2, 3)
      EarlyExit(exit=2, tokens=3, among=None, head=None)
    """
    given: dict[str, Any] = {} if tokens is None else {"tokens": tokens}
    if kind not in DRAFTS:
        raise SettingsError(f"--draft must be one of {', '.join(DRAFTS)}, got {kind!r}")
    if (kind == "early_exit") != (exit is not None):
        raise SettingsError("--draft early_exit and --draft-exit go together")
    if kind == "none" and tokens is not None:
        raise SettingsError("--draft-tokens is for --draft early_exit and prompt_lookup")
    if exit is not None:
        return EarlyExit(exit, **given)
    return PromptLookup(**given) if kind == "prompt_lookup" else None


def exits_of(after: tuple[int, ...], threshold: float | None = None, park: int = 0) -> Exits | None:
    """Exits at which the most probable token is ahead of the second by more than a threshold.

    Args:
      after: numbers of blocks after which tokens may exit; empty for none.
      threshold: of p_(1) - p_(2), in 0..1; None for 0.9.
      park: as in `dx.decoding.Exits`.

    Raises:
      SettingsError: a threshold or `park` without exits, or out of range.

    Example:
      >>> exits_of((2, 4), 0.9).after, exits_of(())
      ((2, 4), None)
    """
    from dynexit.criteria.confidence import margin_above

    if not after:
        if threshold is not None:
            raise SettingsError("--threshold goes with --exits")
        if park:
            raise SettingsError("--park goes with --exits")
        return None
    threshold = 0.9 if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise SettingsError(f"--threshold must lie in 0..1, got {threshold:g}")
    if park < 0:
        raise SettingsError(f"--park must be at least 0, got {park}")
    return Exits(tuple(after), margin_above(threshold), park=park)
