"""A run folder is data: what was trained, with which settings and versions. Code is never read from
it.
"""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynexit.runs.experiment_file import ExperimentFile, SettingsError, from_dict, load, to_dict

SETTINGS = "settings.json"
PACKAGES = (
    "dynexit",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow-datasets",
    "scikit-learn",
)


class Run(NamedTuple):
    """A run folder with the experiment it belongs to.

    Attributes:
      folder: the folder.
      file: the experiment file as it is now.
      settings: the recorded settings, as the file's dataclass.
      recorded: all of `settings.json`.
    """

    folder: Path
    file: ExperimentFile
    settings: Any
    recorded: dict


def default_folder(name: str) -> Path:
    """`runs/NAME-TIME`."""
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def claim(
    folder: Path,
    file: ExperimentFile,
    settings: Any,
    argv: Sequence[str],
    log: Callable[[str], None],
) -> Run:
    """Makes a run folder for an experiment, or takes up one that was begun with the same settings.

    Raises:
      SettingsError: the folder belongs to another experiment or other settings, or holds something
        that is no run.
    """
    if (folder / SETTINGS).exists():
        recorded = read(folder)
        if recorded["name"] != file.name:
            raise SettingsError(
                f"{folder} is a run of another experiment: {recorded['name']}, not {file.name}; name another folder with --run"
            )
        begun = from_dict(file.settings, recorded["settings"], str(folder / SETTINGS), log)
        differences = _differences(
            *(json.loads(json.dumps(to_dict(each))) for each in (begun, settings))
        )
        if differences:
            lines = "\n".join(f"  {d}" for d in differences)
            raise SettingsError(
                f"{folder} was begun with other settings; name another folder with --run:\n{lines}"
            )
        _warn_if_changed(recorded, file, log)
        return Run(folder, file, settings, recorded)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(
            f"{folder} exists and is no run folder (it holds no {SETTINGS}); name another with --run"
        )
    folder.mkdir(parents=True, exist_ok=True)
    recorded = {
        "name": file.name,
        "experiment": str(file.path.resolve()),
        "sha256": file.sha256,
        "settings": to_dict(settings),
        "command": ["dynexit", *argv],
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(file.path.resolve().parent),
        "versions": versions(),
    }
    write_json(folder / SETTINGS, recorded)
    return Run(folder, file, settings, recorded)


def reopen(folder: Path, experiment: Path | None, log: Callable[[str], None]) -> Run:
    """Opens a run with the experiment file that the user names, or else with the one that the run
    recorded.

    Raises:
      SettingsError: no run there, a damaged record, no such experiment file, or a file whose
        settings no longer fit.
    """
    recorded = read(folder)
    named = experiment if experiment is not None else Path(recorded["experiment"])
    if not named.is_file():
        raise SettingsError(
            f"{folder} was trained from {named}, which is not there; name the file with --experiment FILE"
        )
    file = load(named)
    _warn_if_changed(recorded, file, log)
    return Run(
        folder,
        file,
        from_dict(file.settings, recorded["settings"], str(folder / SETTINGS), log),
        recorded,
    )


def read(folder: Path) -> dict:
    """`settings.json` of a run.

    Raises:
      SettingsError: it is not there, or it is damaged.
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise SettingsError(f"{folder} is not a run folder: it holds no {SETTINGS}")
    try:
        recorded = json.loads(path.read_text())
        missing = {"name", "experiment", "sha256", "settings"} - set(recorded)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} is damaged: {error}") from error
    if missing:
        raise SettingsError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    return recorded


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def versions() -> dict[str, str]:
    """Python and the packages that results depend on, as installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> str | None:
    """The git commit of a folder, with `+changes` where the tree differs from it; None outside git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _warn_if_changed(recorded: dict, file: ExperimentFile, log: Callable[[str], None]) -> None:
    if recorded["sha256"] != file.sha256:
        log(
            f"WARNING: {file.path} is not the file this run was trained from "
            f"(sha256 {file.sha256[:12]}, recorded {recorded['sha256'][:12]}); going on with the file as it is now"
        )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d
            for k in sorted({*old, *new})
            for d in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)
        ]
    return [] if old == new else [f"{path} is {old!r} there, {new!r} here"]
