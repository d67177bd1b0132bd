"""`dynexit train FILE`: from an experiment file to a report."""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dynexit.cli import distributed
from dynexit.cli.options import Flag, filled, grouped, parse
from dynexit.cli.positional import split
from dynexit.core.processes.start import broadcast, current
from dynexit.runs.branch import branch, refuse_branch
from dynexit.runs.built import built, mesh_of, started_from
from dynexit.runs.choice_file import rule_of
from dynexit.runs.experiment_file import Experiment, ExperimentFile, SettingsError, load
from dynexit.runs.language import keep_tokenizer
from dynexit.runs.pipeline import REPORT, draw_training, finish, log
from dynexit.runs.recorded_settings import to_dict
from dynexit.runs.run_folder import claim, default_folder, read, refuse_folder, take_up
from dynexit.runs.starts import confirm_shared, record

if TYPE_CHECKING:
    from dynexit.training.signals import StopRequest

USAGE = "dynexit train FILE [--run FOLDER] [--init RUN] [--smoke] [--profile] [--model.depth 6 ...]"
PROFILED = "5"  # updates that `--profile` traces


def train(argv: Sequence[str]) -> int:
    """Trains, calibrates, evaluates and reports.

    A run folder that was begun with the same settings is resumed.

    A finished run is not trained again: its weights are calibrated and measured again.
    """
    from dynexit.training.signals import StopRequest

    with StopRequest(at_once=True) as stop:
        return _train(argv, stop)


def _train(argv: Sequence[str], stop: "StopRequest") -> int:
    words, rest = split(argv, USAGE)
    rest = filled(rest, "--profile", PROFILED)
    if not words:
        print(
            f"usage: {USAGE}\n\n"
            "`dynexit train FILE --help` shows every setting of FILE with its default."
        )
        return 0
    file = load(words[0])
    smoke = "--smoke" in rest
    options, settings = parse(
        rest,
        f"dynexit train {words[0]}",
        FLAGS,
        file.smoke if smoke else file.settings,
        file.summary,
    )
    config = to_dict(settings)
    if options["profile"] < 0:
        raise SettingsError(f"--profile must be at least 0, got {options['profile']}")
    if not 0 <= options["stall_minutes"] <= 1e6:
        raise SettingsError(f"--stall-minutes must lie in 0..1e6, got {options['stall_minutes']}")
    named = options["run"] or default_folder(f"{file.name}-smoke" if smoke else file.name)
    refuse_folder(named, file)
    if options["init"]:
        read(Path(options["init"]))
    refuse_branch(options)

    _use_cache(options["cache"], Path(named))
    stop.attach(distributed.connect(options, log))
    if not options["run"]:
        named = broadcast(str(named), "name of the run folder", timeout=None)
    experiment = built(file, settings, overrides(rest))
    if options["init"]:
        experiment = started_from(Path(options["init"]), experiment)
    job = _Job(
        Path(named),
        file,
        settings,
        experiment,
        config,
        argv,
        options["profile"],
        options["stall_minutes"],
        options["from_run"] and Path(options["from_run"]),
        options["from_step"],
    )
    return _run(job, stop)


FLAGS = (
    Flag(
        "run",
        str | None,
        None,
        "run folder; by default runs/NAME-TIME-RANDOM. An interrupted run in it is resumed",
    ),
    Flag(
        "smoke",
        bool,
        False,
        "the same job in seconds: the file's SMOKE settings are the defaults",
    ),
    Flag(
        "profile",
        int,
        0,
        f"trace N updates after compilation into RUN/profile; {PROFILED} where N is not given",
    ),
    Flag(
        "stall_minutes",
        float,
        10.0,
        "minutes without an update after which a line says what training does; 0 for never",
    ),
    Flag("init", str | None, None, "run folder whose newest weights training starts from"),
    Flag(
        "cache",
        str | None,
        None,
        "folder of compiled programs, outside the run folder; by default "
        "$JAX_COMPILATION_CACHE_DIR or the user's cache folder",
    ),
    Flag(
        "from_run",
        str | None,
        None,
        "run folder that a new run continues from a checkpoint, with other settings if you like",
    ),
    Flag("from_step", int | None, None, "its checkpoint, with --from-run; by default the newest"),
    *distributed.FLAGS,
)


def _use_cache(named: str | None, run: Path) -> None:
    """Sets the folder of compiled programs.

    Raises:
      SettingsError: it lies inside the run folder, which is data: programs would be executed.
    """
    if named is not None and Path(named).resolve().is_relative_to(run.resolve()):
        raise SettingsError(
            f"--cache {named} lies inside the run folder {run}, which is data: programs of a run "
            "folder are never run; name a folder beside it"
        )
    from dynexit.runs.compilation_cache import use_cache

    use_cache(None if named is None else Path(named))


class _Job(NamedTuple):
    """What `train` is to do, from its words."""

    folder: Path
    file: ExperimentFile
    settings: Any
    experiment: Experiment
    config: dict[str, Any]
    argv: Sequence[str]
    profile: int
    stall_minutes: float
    from_run: Path | None
    from_step: int | None


def _run(job: _Job, stop: "StopRequest") -> int:
    from dynexit.core.folder_lock import in_use
    from dynexit.training.loop import fit

    file, settings, experiment = job.file, job.settings, job.experiment
    member = current()
    first = member is None or member.rank == 0
    with contextlib.ExitStack() as stack:
        if first:
            run = claim(job.folder, file, settings, ["train", *job.argv], log)
            stack.enter_context(in_use(run.folder))
            if job.from_run is not None:
                branch(job.from_run, job.from_step, run.folder, log)
            keep_tokenizer(run.folder, getattr(settings, "data", None))
            confirm_shared(run.folder, record(run.folder, log))
        else:
            confirm_shared(job.folder, None)
            run = take_up(job.folder, file, settings, lambda line: None)
        again = f"dynexit train {resume_words(job.argv, run.folder)}"
        stop.hint = f"; resume with: {again}"
        if first and (run.folder / REPORT).exists():
            log(f"{run.folder} has finished before: its weights are calibrated and measured again")
        fitted = fit(
            experiment,
            settings.training,
            run.folder,
            settings.seed,
            progress=first,
            mesh=mesh_of(settings),
            evals=_depths(experiment, settings, stop),
            config=job.config,
            profile=job.profile,
            stop=stop,
            stall_minutes=job.stall_minutes,
        )
        if first:
            draw_training(run.folder)
        if stop.requested:
            if first:
                log(
                    f"stopped at step {int(fitted.step)} of {settings.training.steps}, "
                    f"resume with: {again}"
                )
            return stop.code
        finish(run, experiment, fitted.params, int(fitted.step), settings.calibration)
    return 0


def _depths(experiment: Experiment, settings: Any, stop: "StopRequest") -> Any:
    """Where rows exit, evaluated during training where wandb shows it."""
    from dynexit.evaluation.exit_depths import depth_evals

    rule, size = rule_of(settings.calibration), settings.evaluation.batch_size
    return depth_evals(experiment, settings.training, rule, size, stop.check)


def overrides(words: Sequence[str]) -> str:
    """The settings among the words of a command, without its flags.

    Example:
      >>> overrides(["--smoke", "--model.depth", "6", "--run", "runs/a", "--seed=3"])
      '--model.depth 6 --seed 3'
    """
    flags = {flag.name.replace("_", "-") for flag in FLAGS}
    name = lambda group: group[0].removeprefix("--").partition("=")[0].replace("_", "-")
    return shlex.join(word for g in grouped(words)[1] if name(g) not in flags for word in g)


def resume_words(argv: Sequence[str], folder: Path) -> str:
    """The words that resume a run: those given, with its folder named."""
    named = any(word == "--run" or word.startswith("--run=") for word in argv)
    return shlex.join([*argv, *([] if named else ["--run", str(folder)])])
