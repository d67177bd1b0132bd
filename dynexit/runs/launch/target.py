"""Options that all targets share, and checks of values."""

import dataclasses
import difflib
import re
from collections.abc import Sequence

NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
ZONE = re.compile(r"[a-z]+-[a-z]+\d+-[a-z]")
BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*/?")
TIME = re.compile(r"(\d+-)?\d{1,3}:\d{2}:\d{2}")


@dataclasses.dataclass(frozen=True)
class Target:
    """Options of every target."""

    name: str | None = None
    """of the job and its run folder; by default the file's name with a hash of what is run, so
    that the same command follows or resumes the same job
    """
    folder: str = "runs"
    """folder on this machine of the job's files and of the run"""
    restarts: int = 10
    """how often training is restarted after a preemption or the loss of a process"""
    setup: str | None = None
    """shell command that every host runs before training, such as a `dynexit data prepare`"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = matches(self, NAME, "lower-case letters, digits and hyphens, at most 40", "name")
        if not 0 <= self.restarts <= 1000:
            found.append(f"restarts must lie in 0..1000, got {self.restarts}")
        return found + one_line(self, "setup") + given(self, "folder") + one_line(self, "folder")


def matches(options: object, pattern: re.Pattern[str], wanted: str, *names: str) -> list[str]:
    """Sentences for the fields `names` that are set and do not match."""
    return [
        f"{name} must be {wanted}, got {value!r}"
        for name in names
        if (value := getattr(options, name)) is not None and not pattern.fullmatch(value)
    ]


def given(options: object, *names: str) -> list[str]:
    """Sentences for the fields `names` that are None or empty."""
    return [
        f"{name.replace('_', '-')} must be given, got {getattr(options, name)!r}"
        for name in names
        if not getattr(options, name)
    ]


def one_line(options: object, *names: str) -> list[str]:
    """Sentences for the fields `names` whose text has control characters."""
    return [
        f"{name} must be one line of text, got {value!r}"
        for name in names
        if (value := getattr(options, name)) is not None and not value.isprintable()
    ]


def nearest(word: str, known: Sequence[str]) -> str:
    """`; the nearest is v5litepod-16`, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; the nearest is {near[0]}" if near else ""
