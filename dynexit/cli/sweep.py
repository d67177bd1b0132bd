"""`dynexit sweep FILE`: a grid of settings as separate runs, and their summary."""

import contextlib
import hashlib
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynexit.cli import distributed
from dynexit.cli.options import Flag, filled, grouped, leaves, read, refuse
from dynexit.cli.positional import split
from dynexit.cli.train import FLAGS as TRAIN
from dynexit.cli.train import PROFILED
from dynexit.core.files import is_url
from dynexit.runs.experiment_file import ExperimentFile, SettingsError, load
from dynexit.runs.pipeline import log
from dynexit.runs.recorded_settings import to_dict
from dynexit.runs.run_folder import MESH, SETTINGS, refuse_folder
from dynexit.runs.sweeps.grid import Axis, Point, argv_of, faults_of, points_of, value_at
from dynexit.runs.sweeps.launched import bring_home, launch_words
from dynexit.runs.sweeps.record import FINISHED, SEED, STOPPED, begin, read_sweep, refreshed

USAGE = (
    "dynexit sweep FILE --model.depth 4 8 --seed 0 1 2 [--sweep FOLDER] [--parallel 1] "
    "[--launch TARGET] [--model.width 64 ...]\n       dynexit sweep FOLDER --summary"
)
OWN = (
    Flag(
        "sweep",
        str | None,
        None,
        "folder of the sweep; by default one in runs/ that the same command finds again",
    ),
    Flag("parallel", int, 1, "runs at a time"),
    Flag(
        "launch",
        str | None,
        None,
        'target and options of `dynexit launch` in quotes, `"slurm --partition gpu"`; by default '
        "the runs train in processes of this machine",
    ),
    Flag("summary", bool, False, "summarise the runs of a sweep folder; nothing is trained"),
)
FLAGS = (
    *OWN,  # the runs are processes of their own, with folders of their own
    *(flag for flag in TRAIN if flag.name != "run" and flag not in distributed.FLAGS),
)
STOPPED_CODE = 143


def sweep(argv: Sequence[str]) -> int:
    """Trains every combination of the settings that are given more than one value.

    Each run is a `dynexit train` in a process of its own. The same command continues a sweep:
    finished runs are kept and the others resume.

    Args:
      argv: the words after `dynexit sweep`.

    Returns:
      The exit code: 0 if all runs have finished, 1 if one has failed, 143 if the sweep was stopped.

    Raises:
      SettingsError: settings that are invalid at any point of the grid, before a run starts.
    """
    words, rest = split(argv, USAGE)
    rest = filled(rest, "--profile", PROFILED)
    if not words:
        print(f"usage: {USAGE}\n\nA setting that is given several values is swept.")
        return 0
    if "--summary" in rest:
        return _summary(Path(words[0]), [word for word in rest if word != "--summary"])
    file = load(words[0])
    prog = f"dynexit sweep {words[0]}"
    defaults = file.smoke if "--smoke" in rest else file.settings
    types = dict(leaves(defaults))
    swept, shared = separated(rest, types)
    options, settings, found = read(shared, prog, FLAGS, defaults, file.summary)
    axes = []
    for name in [*(n for n in types if n != SEED), SEED]:  # the order of the words has no effect
        if name not in swept:
            continue
        axis, faults = _axis(name, swept[name], prog, defaults)
        axes.append(axis)
        found += faults
    if options["parallel"] < 1:
        found.append(f"--parallel must be at least 1, got {options['parallel']}")
    if not axes:
        found.append("a sweep needs a setting with several values, such as --seed 0 1 2")
    points = points_of(axes, settings)
    refuse(found or faults_of(points), prog)
    name = f"{file.name}-smoke" if "--smoke" in rest else file.name
    folder = Path(options["sweep"] or _default_folder(name, axes, settings))
    _refuse_folder(folder, file, points)
    launch, passed = shlex.split(options["launch"] or ""), _passed(shared)
    if launch:
        _refuse_launch(launch_words(launch, file.path, passed, points[0], folder))
    return _run(
        file, folder, axes, settings, points, passed, argv, options["parallel"], tuple(launch)
    )


def separated(
    words: Sequence[str], types: dict[str, Any]
) -> tuple[dict[str, list[tuple[str, ...]]], list[str]]:
    """The settings that are given several values, and the words of all other options.

    The values of a setting that holds a tuple are words with a space, `"16 32" "32 64"`.

    Args:
      words: options and their values.
      types: of every setting, by dotted name.

    Raises:
      SettingsError: an option is given twice.

    Example:
      >>> separated(["--seed", "0", "1", "--model.depth", "4"], {"seed": int, "model.depth": int})
      ({'seed': [('0',), ('1',)]}, ['--model.depth', '4'])
      >>> separated(["--widths", "1 2", "3 4"], {"widths": tuple[int, ...]})
      ({'widths': [('1', '2'), ('3', '4')]}, [])
    """
    stray, groups = grouped(words)
    swept: dict[str, list[tuple[str, ...]]] = {}
    shared, names = list(stray), set[str]()
    for option, *values in groups:
        name = option.removeprefix("--").replace("-", "_")
        if name in names:
            raise SettingsError(f"{option} is given twice; write its values behind one option")
        names.add(name)
        takes_several = "tuple" in str(types.get(name)) and not any(" " in v for v in values)
        if name not in types or len(values) < 2 or takes_several:
            shared += [option, *values]
        else:
            swept[name] = [tuple(value.split()) for value in values]
    return swept, shared


def _axis(
    name: str, values: list[tuple[str, ...]], prog: str, defaults: Any
) -> tuple[Axis, list[str]]:
    """An axis, and what is wrong with its values."""
    typed, found = [], []
    for words in values:
        _, settings, faults = read([f"--{name}", *words], prog, (), defaults)
        typed.append(value_at(settings, name))
        found += faults
    if not found and len(set(map(repr, typed))) < len(typed):
        found.append(f"--{name} has a value twice: {' '.join(map(' '.join, values))}")
    return Axis(name, tuple(values), tuple(typed)), found


def _default_folder(name: str, axes: Sequence[Axis], settings: Any) -> Path:
    """A folder that depends on the experiment, its settings and the names of the axes."""
    values = {name: value for name, value in to_dict(settings).items() if name != MESH}
    content = [values, sorted(axis.name for axis in axes)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"{name}-sweep-{digest[:6]}"


def _refuse_folder(folder: Path, file: ExperimentFile, points: Sequence[Point]) -> None:
    for point in points:
        refuse_folder(folder / point.name if not is_url(folder) else folder, file)
    if (folder / SETTINGS).exists():
        raise SettingsError(f"--sweep {folder} is the folder of one run; name another")


def _refuse_launch(words: Sequence[str]) -> None:
    """Refuses a target, or options of it, that the launch of a run would refuse."""
    from dynexit.cli.launch import launch

    with contextlib.redirect_stdout(io.StringIO()):
        launch([*words[1:], "--dry-run"])


def _passed(shared: Sequence[str]) -> list[str]:
    """The options that every run gets: all but the sweep's own."""
    own = {flag.name for flag in OWN}
    _, groups = grouped(shared)
    named = lambda group: group[0].removeprefix("--").replace("-", "_")
    return [word for group in groups if named(group) not in own for word in group]


def _run(
    file: ExperimentFile,
    folder: Path,
    axes: Sequence[Axis],
    settings: Any,
    points: Sequence[Point],
    passed: Sequence[str],
    argv: Sequence[str],
    parallel: int,
    launch: Sequence[str],
) -> int:
    from dynexit.core.folder_lock import in_use
    from dynexit.runs.sweeps.children import run_all_points, start
    from dynexit.runs.sweeps.progress import Progress
    from dynexit.runs.sweeps.tables import write_summary
    from dynexit.training.signals import StopRequest

    folder.mkdir(parents=True, exist_ok=True)
    with in_use(folder), StopRequest() as stop:
        command = ["sweep", *argv]
        content = begin(folder, file.name, file.path, command, axes, settings, points)
        by_name = {point.name: point for point in points}
        entries = {entry["run"]: entry for entry in content["points"] if entry["run"] in by_name}
        todo = [name for name in by_name if entries[name]["state"] != FINISHED]
        if len(todo) < len(points):
            log(f"{len(points) - len(todo)} of {len(points)} runs have finished before")
        progress = Progress(folder, todo)
        log_of = lambda name: folder / f"{name}.log"

        def words_of(point: Point) -> list[str]:
            if launch:
                return launch_words(launch, file.path, passed, point, folder)
            return argv_of(file.path, passed, point, folder)

        def ended(name: str, outcome: Any) -> None:
            nonlocal content
            if launch and outcome.state == FINISHED:
                bring_home(folder, by_name[name])
            for entry in content["points"]:
                if entry["run"] == name:
                    entry |= {"state": outcome.state, "why": outcome.why}
            content = refreshed(folder, content)
            progress.ended(name, outcome)

        with progress:
            run_all_points(
                todo,
                lambda name: start(words_of(by_name[name]), log_of(name), folder.name),
                log_of,
                parallel,
                ended,
                progress.show,
                lambda: stop.requested,
            )
        write_summary(folder, content)
    states = [entry["state"] for entry in content["points"] if entry["run"] in by_name]
    if stop.requested or STOPPED in states:
        log("the sweep was stopped; the same command continues it")
        return STOPPED_CODE
    return 0 if all(state == FINISHED for state in states) else 1


def _summary(folder: Path, rest: Sequence[str]) -> int:
    from dynexit.runs.sweeps.tables import write_summary

    if rest:
        raise SettingsError(f"unexpected argument {rest[0]!r}\nusage: {USAGE}")
    write_summary(folder, refreshed(folder, read_sweep(folder)))
    return 0
