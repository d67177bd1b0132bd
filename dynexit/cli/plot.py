"""`dynexit plot RUN [RUN ...]`: curves of several runs in one figure."""

import json
from collections.abc import Sequence
from pathlib import Path

from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
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
    out = Path(options["out"])
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise SettingsError(f"--out must end in .png, .pdf or .svg, got {out}")
    if not out.resolve().parent.is_dir():
        raise SettingsError(f"--out is in {out.resolve().parent}, which is not a folder")

    from dynexit.evaluation.reports import plots

    print(plots.compare_runs(contents, [Path(word).name or word for word in words], out))
    return 0


def finished(folder: Path) -> dict:
    """The report of a run.

    Raises:
      SettingsError: no run, or one without a readable report.
    """
    read(folder)
    path = folder / REPORT
    if not path.exists():
        raise SettingsError(
            f"{folder} has no {REPORT} yet: it has not finished; `dynexit train` with the same words goes on"
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise SettingsError(
            f"{path} is damaged: {error}; `dynexit evaluate {folder}` writes it again"
        ) from error
