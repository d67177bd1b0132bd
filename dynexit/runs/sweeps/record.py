"""`sweep.json`: the grid of a sweep and what its runs gave."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.pipeline import REPORT
from dynexit.runs.recorded_settings import to_dict
from dynexit.runs.run_folder import MESH, differences, write_json
from dynexit.runs.sweeps.grid import Axis, Point, value_at

SWEEP = "sweep.json"
SCHEMA = 1
SEED = "seed"  # runs that differ in it alone are summarised together
PENDING, FINISHED, STOPPED, FAILED = "pending", "finished", "stopped", "failed"
FIGURES = (
    "accuracy_full",
    "accuracy_dynamic",
    "mean_depth",
    "flops_full",
    "flops_ratio",
    "seconds_full",
    "seconds_dynamic",
    "speedup",
    "efficiency",
)

Content: TypeAlias = dict[str, Any]


def begin(
    folder: Path,
    name: str,
    experiment: Path,
    command: Sequence[str],
    axes: Sequence[Axis],
    settings: Any,
    points: Sequence[Point],
) -> Content:
    """Writes `sweep.json`, or adds points to the one that is there.

    Args:
      folder: the sweep's; it exists.
      name: of the experiment.
      experiment: its file.
      command: the words after `dynexit`.
      axes: the settings with several values.
      settings: of every run, with the defaults of the axes.
      points: the grid.

    Returns:
      The content.

    Raises:
      SettingsError: the folder holds a sweep of another experiment, over other settings, or with
        other values of the settings that all runs share.
    """
    # a run may go on with another mesh
    shared = _without(to_dict(settings), [MESH, *(axis.name for axis in axes)])
    content: Content = {
        "schema_version": SCHEMA,
        "name": name,
        "experiment": str(experiment.resolve()),
        "command": ["dynexit", *command],
        "axes": [axis.name for axis in axes],
        "settings": shared,
        "points": [],
    }
    if (folder / SWEEP).exists():
        before = read_sweep(folder)
        found = differences(
            {k: before[k] for k in ("name", "axes", "settings")},
            {k: content[k] for k in ("name", "axes", "settings")},
        )
        if found:
            lines = "\n".join(f"  {each}" for each in found)
            raise SettingsError(
                f"{folder} holds another sweep; name another folder with --sweep:\n{lines}"
            )
        content["points"] = before["points"]
    known = {each["run"]: each for each in content["points"]}
    for point in points:
        values = to_dict(point.settings)
        entry = {"run": point.name, "values": {a.name: value_at(values, a.name) for a in axes}}
        if point.name not in known:
            content["points"].append({**entry, "state": PENDING})
    return refreshed(folder, content)


def read_sweep(folder: Path | str) -> Content:
    """The content of `sweep.json` of a sweep's folder.

    Args:
      folder: the sweep's.

    Returns:
      A dict: "axes", the names of the settings that vary; "points", one dict for each run with
      "run", "values", "state" and, where it has finished, its figures; "groups", the mean and the
      sample standard deviation of each figure over the seeds, for each combination of the others.

    Raises:
      SettingsError: there is none, or it is damaged or of another schema.
    """
    path = Path(folder) / SWEEP
    if not path.is_file():
        raise SettingsError(f"{folder} is not the folder of a sweep: it holds no {SWEEP}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = {"schema_version", "name", "axes", "settings", "points"} - set(content)
        if missing or not all({"run", "values"} <= set(each) for each in content["points"]):
            raise ValueError("it lacks entries")
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"{path} is damaged: {error}") from error
    if content["schema_version"] != SCHEMA:
        raise SettingsError(
            f"{path} has schema {content['schema_version']}, and this version reads {SCHEMA}"
        )
    return content


def refreshed(folder: Path, content: Content) -> Content:
    """Reads the reports of all runs again, groups them, and writes `sweep.json`.

    Args:
      folder: the sweep's.
      content: of `sweep.json`; a run without a report keeps its state.

    Returns:
      The content with the figures of every finished run and, in "groups", the mean and the sample
      standard deviation over the seeds for each combination of the other settings.
    """
    points = []
    for point in content["points"]:
        figures = figures_of(folder / point["run"])
        kept = {k: point[k] for k in ("run", "values", "state", "why") if k in point}
        if figures is not None:
            kept = {k: kept[k] for k in ("run", "values")} | {"state": FINISHED, **figures}
        elif kept.get("state") == FINISHED:
            kept["state"] = PENDING
        points.append(kept)
    content = {**content, "points": points, "groups": groups_of(points, content["axes"])}
    write_json(folder / SWEEP, content)
    return content


def figures_of(run: Path) -> Content | None:
    """The figures of a run's `report.json`; None where there is no readable one."""
    try:
        report = json.loads((run / REPORT).read_text(encoding="utf-8"))
        return {name: report[name] for name in FIGURES}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def groups_of(points: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> list[Content]:
    """Mean and sample standard deviation over the seeds.

    Args:
      points: entries of `sweep.json`; those that are not finished are left out.
      axes: names of the settings that vary.

    Returns:
      For each combination of the settings other than the seed, in the order of the points:
      `{"values": {name: value}, "runs": n, name of a figure: {"mean": m, "sd": s}}`; the standard
      deviation is None for one run.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    others = [name for name in axes if name != SEED]
    for point in points:
        values = {name: point["values"][name] for name in others}
        groups.setdefault(json.dumps(values), []).append(point)
    return [
        {"values": json.loads(values), **_statistics(group)} for values, group in groups.items()
    ]


def _statistics(group: Sequence[Mapping[str, Any]]) -> Content:
    finished = [point for point in group if point["state"] == FINISHED]
    found: Content = {"runs": len(finished)}
    for name in FIGURES:
        values = [float(point[name]) for point in finished if point[name] is not None]
        found[name] = {
            "mean": statistics.fmean(values) if values else None,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
        }
    return found


def _without(settings: Content, names: Sequence[str]) -> Content:
    """Nested dicts without the values at dotted names."""
    heads = {name.partition(".")[0]: [] for name in names}
    for name in names:
        first, _, rest = name.partition(".")
        heads[first].append(rest)
    return {
        key: value if key not in heads else _without(value, heads[key])
        for key, value in settings.items()
        if key not in heads or "" not in heads[key]
    }
