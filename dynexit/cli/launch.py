"""`dynexit launch TARGET FILE`: trains on a TPU pod, a cluster, a cloud or this machine."""

import ast
import dataclasses
import difflib
import importlib
import inspect
import textwrap
import typing
from collections.abc import Sequence
from typing import Any

from dynexit.cli.options import Flag, grouped, parse
from dynexit.cli.positional import split
from dynexit.core.settings import validate
from dynexit.runs.experiment_file import SettingsError, load
from dynexit.runs.launch.job import Job, make_job

USAGE = "dynexit launch TARGET FILE [--dry-run] [options of the target] [--model.depth 6 ...]"
TARGETS = ("local", "slurm", "sky", "tpu", "xpk")
DRY_RUN = Flag("dry_run", bool, False, "print every file and every command; nothing is executed")
DETACH = Flag(
    "detach", bool, False, "return once the job is submitted; the same command follows it"
)
SMOKE = Flag(
    "smoke", bool, False, "the same job in seconds: the file's SMOKE settings are the defaults"
)


def launch(argv: Sequence[str]) -> int:
    """Launches an experiment on a target, follows it, and brings the run folder back.

    Args:
      argv: the words after `dynexit launch`.

    Returns:
      The exit code: 0; 1 if training failed; of `local`, the worst of the processes.

    Raises:
      SettingsError: an unknown target, invalid options or settings, a missing program.
    """
    words, rest = split(argv, USAGE, most=2)
    if not words:
        print(f"usage: {USAGE}\n\n{_summaries()}")
        return 0
    if words[0] not in TARGETS:
        near = difflib.get_close_matches(words[0], TARGETS, n=1)
        raise SettingsError(
            f"TARGET must be one of {', '.join(TARGETS)}, got {words[0]!r}"
            + (f"; the nearest is {near[0]}" if near else "")
        )
    if len(words) < 2:
        raise SettingsError(f"usage: {USAGE}")
    target, file = words[0], load(words[1])
    kind = options_of(target)
    flags = (DRY_RUN, SMOKE, *(() if target == "local" else (DETACH,)), *flags_of(kind))
    settings = file.smoke if "--smoke" in rest else file.settings
    prog = f"dynexit launch {target} {words[1]}"
    given, _ = parse(rest, prog, flags, settings, (kind.__doc__ or "").partition("\n")[0])
    options = kind(**{field.name: given[field.name] for field in dataclasses.fields(kind)})
    if found := validate(options):
        lines = "\n".join(f"  {sentence}" for sentence in found)
        raise SettingsError(f"invalid options:\n{lines}\n`{prog} --help` shows all options.")
    own = {flag.name for flag in flags} - {"smoke"}
    job = make_job(file.path, others(rest, own), options.name, options.folder)
    return _launch(target, options, job, given)


def _launch(target: str, options: Any, job: Job, given: dict[str, Any]) -> int:
    say = lambda line: print(line, flush=True)
    if target == "local":
        from dynexit.runs.launch.local import execute_local, plan_local, show_local

        planned = plan_local(options, job)
        if given["dry_run"]:
            say(show_local(planned))
            return 0
        return execute_local(planned, options, say)
    from dynexit.runs.launch.execute import execute
    from dynexit.runs.launch.plan import show

    module = importlib.import_module(f"dynexit.runs.launch.{target}")
    plan = getattr(module, f"plan_{target}")(options, job)
    if given["dry_run"]:
        say(show(plan))
        return 0
    try:
        return execute(plan, say, given["detach"], installs=module.INSTALLS)
    except KeyboardInterrupt:
        from dynexit.runs.launch.plan import show_commands

        say(f"\n{plan.name} goes on; the same command follows it again.")
        say(show_commands((plan.stop,)))
        return 130


def options_of(target: str) -> type:
    """The class of a target's options."""
    return getattr(importlib.import_module(f"dynexit.runs.launch.{target}"), target.capitalize())


def flags_of(kind: type) -> tuple[Flag, ...]:
    """An option of the command for each field of a dataclass; the text below a field is its help.

    Args:
      kind: a dataclass whose fields have defaults.
    """
    hints = typing.get_type_hints(kind)
    texts = {name: help for base in reversed(kind.__mro__) for name, help in _texts(base)}
    return tuple(
        Flag(field.name, hints[field.name], field.default, texts[field.name])
        for field in dataclasses.fields(kind)
    )


def others(words: Sequence[str], names: set[str]) -> list[str]:
    """The options and values that are not of `names`: what `dynexit train` gets.

    Example:
      >>> others(["--nodes", "2", "--model.depth", "6"], {"nodes"})
      ['--model.depth', '6']
    """
    _, groups = grouped(words)
    return [
        word
        for group in groups
        if group[0].removeprefix("--").replace("-", "_") not in names
        for word in group
    ]


def _texts(kind: type) -> list[tuple[str, str]]:
    if not dataclasses.is_dataclass(kind):
        return []
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = []
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found.append((field.target.id, " ".join(str(text.value.value).split())))
    return found


def _summaries() -> str:
    about = {
        "local": "processes on this machine",
        "slurm": "a SLURM cluster, from its login node",
        "sky": "GPUs or TPUs of a cloud or Kubernetes, by SkyPilot",
        "tpu": "a TPU VM or pod slice of Google Cloud, by gcloud",
        "xpk": "TPU slices of a GKE cluster, by XPK",
    }
    lines = "\n".join(f"  {name:7}{about[name]}" for name in TARGETS)
    return (
        f"targets:\n{lines}\n\n`dynexit launch TARGET FILE --help` shows the options of a target."
    )
