"""A run folder is data: what was trained, with its settings and versions.

Code is never read from it.
"""

import datetime
import errno
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynexit.core.files import is_url, replacing
from dynexit.core.folder_lock import FILE as LOCK
from dynexit.core.folder_lock import in_use
from dynexit.runs.experiment_file import ExperimentFile, SettingsError, digest, load
from dynexit.runs.recorded_settings import from_dict, to_dict

SETTINGS, MESH = "settings.json", "mesh"
PACKAGES = (
    "dynexit",
    "jax",
    "jaxlib",
    "flax",
    "optax",
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
    recorded: dict[str, Any]


def default_folder(name: str) -> Path:
    """`runs/NAME-TIME-RANDOM`; two runs that begin in the same second have folders of their own."""
    time = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    return Path("runs") / f"{name}-{time}-{secrets.token_hex(3)}"


def refuse_folder(folder: str | Path, file: ExperimentFile) -> None:
    """Refuses a run folder that cannot be made, before anything is built.

    Raises:
      SettingsError: an address, a folder below a file or without permission, or one that holds the
        experiment file: a run folder is data.
    """
    _local(folder)
    folder = Path(folder)
    _refuse_own_code(folder, file.path)
    existing = folder
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if existing.exists() and not existing.is_dir():
            raise SettingsError(f"--run {folder} cannot be made: {existing} is not a folder")
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from error
    if existing.exists() and not os.access(existing, os.W_OK | os.X_OK):
        raise SettingsError(f"--run {folder} cannot be written: no permission for {existing}")


def claim(
    folder: Path,
    file: ExperimentFile,
    settings: Any,
    argv: Sequence[str],
    log: Callable[[str], None],
) -> Run:
    """Makes a run folder for an experiment, or takes up one that was begun with the same settings.

    Of several processes, process 0 alone calls it; the others call `take_up` after it.

    Args:
      folder: the run's.
      file: the experiment.
      settings: as the file's dataclass.
      argv: the words after `dynexit`, for the record.
      log: gets a line where the experiment file has changed.

    Raises:
      SettingsError: the folder belongs to another experiment or other settings, holds something
        that is no run, or cannot be written; a setting cannot be recorded.
      FolderInUse: another process trains there.
    """
    refuse_folder(folder, file)
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
    try:
        return _claimed(folder, file, settings, recorded, log)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise _unusable(folder, error) from error


def _claimed(
    folder: Path,
    file: ExperimentFile,
    settings: Any,
    recorded: dict[str, Any],
    log: Callable[[str], None],
) -> Run:
    made = not folder.exists()
    if not made and not (folder / SETTINGS).exists() and _holds_something(folder):
        raise SettingsError(
            f"{folder} exists and is no run folder (it holds no {SETTINGS}); "
            "name another with --run"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with in_use(folder):
        if (folder / SETTINGS).exists():
            return take_up(folder, file, settings, log)
        try:
            write_json(folder / SETTINGS, recorded)
        except BaseException:
            if made:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return Run(folder, file, settings, recorded)


def take_up(folder: Path, file: ExperimentFile, settings: Any, log: Callable[[str], None]) -> Run:
    """Opens a run folder that was begun with the same settings.

    Raises:
      SettingsError: as `claim`.
    """
    recorded = read(folder)
    if recorded["name"] != file.name:
        raise SettingsError(
            f"{folder} is a run of another experiment: {recorded['name']}, not {file.name}; "
            "name another folder with --run"
        )
    for name in ("checkpoints", "best"):
        if (folder / name).is_symlink():
            raise SettingsError(
                f"{folder / name} is a link, which is not followed; name another folder with --run"
            )
    begun = from_dict(file.settings, recorded["settings"], str(folder / SETTINGS), log)
    old, new = to_dict(begun), to_dict(settings)
    if moved := differences(old.pop(MESH, None), new.pop(MESH, None), MESH):
        log(f"another mesh than in {folder}, so bits may differ: {'; '.join(moved)}")
    if found := differences(old, new):
        lines = "\n".join(f"  {d}" for d in found)
        raise SettingsError(
            f"{folder} was begun with other settings; name another folder with --run:\n{lines}"
        )
    if recorded["sha256"] != file.sha256:
        log(f"WARNING: {_changed(recorded, file.path, file.sha256)}; it is used as it is now")
    return Run(folder, file, settings, recorded)


def _holds_something(folder: Path) -> bool:
    return not folder.is_dir() or any(each.name != LOCK for each in folder.iterdir())


def reopen(
    folder: Path, experiment: Path | None, log: Callable[[str], None], data: bool = True
) -> Run:
    """Opens a run with a given experiment file, or with the recorded one if it is unchanged.

    A run folder is data: no file inside it is imported, and the recorded file is imported only
    with the recorded hash. Without `data`, its settings may name files that are not there.

    Raises:
      SettingsError: no run there, a damaged record, no such experiment file, one inside the run
        folder, one that has changed and was not named, or one whose settings no longer fit.
    """
    recorded = read(folder)
    named = experiment if experiment is not None else Path(recorded["experiment"])
    if experiment is None and not named.is_absolute():
        raise SettingsError(
            f"{folder / SETTINGS} names {named}, which is no absolute path; "
            "name the file with --experiment FILE"
        )
    if not named.is_file():
        raise SettingsError(
            f"{folder} was trained from {named}, which is not there; "
            "name the file with --experiment FILE"
        )
    _refuse_own_code(folder, named)
    sha256 = digest(named)
    if sha256 != recorded["sha256"]:
        changed = _changed(recorded, named, sha256)
        if experiment is None:
            raise SettingsError(f"{changed}; to use it as it is now, add --experiment {named}")
        log(f"WARNING: {changed}; it is used as it is now")
    file = load(named)
    settings = from_dict(file.settings, recorded["settings"], str(folder / SETTINGS), log, data)
    return Run(folder, file, settings, recorded)


def read(folder: Path) -> dict[str, Any]:
    """`settings.json` of a run.

    Raises:
      SettingsError: it is not there, or it is damaged.
    """
    _local(folder)
    path = Path(folder) / SETTINGS
    try:
        if not path.is_file():
            raise SettingsError(f"{folder} is not a run folder: it holds no {SETTINGS}")
        recorded = json.loads(path.read_text(encoding="utf-8"))
        missing = {"name", "experiment", "sha256", "settings"} - set(recorded)
    except SettingsError:
        raise
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} is damaged: {error}") from error
    if missing:
        raise SettingsError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    return recorded


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all; a link at its place is replaced, not followed."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; a link at its place is replaced, not followed."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


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
    """The git commit of a folder, `+changes` where the tree differs; None outside git."""

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


def _changed(recorded: dict[str, Any], path: Path, sha256: str) -> str:
    return (
        f"{path}, or a file that it imports, is not what this run was trained from "
        f"(sha256 {sha256[:12]}, recorded {str(recorded['sha256'])[:12]})"
    )


def _refuse_own_code(folder: Path, file: Path) -> None:
    if file.resolve().is_relative_to(Path(folder).resolve()):
        raise SettingsError(
            f"the experiment file {file} lies inside the run folder {folder}, which is data: "
            "code of a run folder is never run; name a file outside with --experiment FILE"
        )


def _local(folder: str | Path) -> None:
    if is_url(folder):
        scheme, _, rest = str(folder).partition(":")
        raise SettingsError(
            "a run folder must be in this machine's file system, got "
            f"{scheme}://{rest.lstrip('/')}; "
            "train into a local folder and copy it, or mount the bucket"
        )


def _unusable(folder: Path, error: Exception) -> SettingsError:
    return SettingsError(
        f"--run {folder} cannot be used: {getattr(error, 'strerror', None) or error}"
    )


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two nested dicts differ, one line for each value."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for name in sorted({*old, *new})
            for difference in differences(
                old.get(name), new.get(name), f"{path}.{name}" if path else name
            )
        ]
    return [] if old == new else [f"{path} is {old!r} there, {new!r} here"]
