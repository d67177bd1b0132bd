"""`dynexit plot RUN [RUN ...]`: curves of several runs in one figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.core.files import is_url
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.pipeline import REPORT
from dynexit.runs.run_folder import read

OUT = Flag(
    "out", str, "comparison.png", "file to write; its ending gives the format (png, pdf, svg)"
)


def plot(argv: Sequence[str]) -> int:
    """Draws the reports of runs that have finished; nothing is run."""
    words, rest = split(argv, "dynexit plot RUN [RUN ...] [--out FILE]", most=None)
    options, _ = parse(rest, "dynexit plot RUN [RUN ...]", (OUT,))
    contents = [finished(Path(word)) for word in words]
    if is_url(options["out"]):
        raise SettingsError(f"--out must be in this machine's file system, got {options['out']}")
    out = Path(options["out"])
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise SettingsError(f"--out must end in .png, .pdf or .svg, got {out}")
    if not out.resolve().parent.is_dir():
        raise SettingsError(f"--out is in {out.resolve().parent}, which is not a folder")

    from dynexit.evaluation.reports import plots

    print(plots.compare_runs(contents, labels_of(words), out))
    return 0


def labels_of(words: Sequence[str]) -> list[str]:
    """The end of each path, as much of it as makes the labels distinct.

    Example:
      >>> labels_of(["a/run", "b/run"]), labels_of(["a/first", "a/second"])
      (['a/run', 'b/run'], ['first', 'second'])
    """
    parts = [Path(word).resolve().parts for word in words]
    labels: list[str] = []
    for count in range(1, max(map(len, parts)) + 1):
        labels = [Path(*each[-count:]).as_posix() for each in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({k})" for k, label in enumerate(labels, 1)]  # one run twice


def finished(folder: Path) -> dict[str, Any]:
    """The report of a run.

    Raises:
      SettingsError: no run, or one without a readable report.
    """
    read(folder)
    path = folder / REPORT
    if not path.exists():
        raise SettingsError(
            f"{folder} has no {REPORT} yet: it has not finished; the same `dynexit train` command "
            "resumes it"
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise SettingsError(
            f"{path} is damaged: {error}; `dynexit evaluate {folder}` writes it again"
        ) from error
