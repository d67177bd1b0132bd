"""The `dynexit` command: runs a command, and prints known errors as one message."""

import contextlib
import errno
import sys
import traceback
import warnings
from collections.abc import Generator, Sequence

from dynexit.runs.experiment_file import SettingsError
from dynexit.training.streams import safe_output

USAGE = """usage: dynexit COMMAND ...

  dynexit train FILE [--run FOLDER] [--smoke] [--model.depth 6 ...]   train, calibrate, report
  dynexit sweep FILE --model.depth 4 8 --seed 0 1 2 [--sweep FOLDER]  a grid of runs, summarised
  dynexit watch RUN [RUN ...] [--every 2] [--once]                    view runs while they train
  dynexit evaluate RUN [--checkpoint best] [--batch-size 128]         measure the test split again
  dynexit calibrate RUN --accept-loss 0.005 | --budget 0.5            choose another point, measure
  dynexit plot RUN [RUN ...] [--out FILE]                             curves of several runs
  dynexit plan FILE [--mesh.data 256] [--mean-depth 2.5]              memory, FLOPs, communication
  dynexit generate MODEL --prompt TEXT [--html FILE]                  write text, show its depths
  dynexit serve MODEL [--port 8000]                                   completions over HTTP
  dynexit data prepare NAME [--raw FOLDER]                            write a data set to disk
  dynexit launch TARGET FILE [--dry-run] [--model.depth 6 ...]        train on a pod or a cluster
  dynexit bench [--suite executors|device] ...                        benchmark this machine

`dynexit COMMAND --help` shows every option with its default."""

BAD_INPUT, FAILED = 2, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the words behind `dynexit`; None for those of the process.

    Returns:
      The exit code: 0; 2 for input that cannot be used, 1 for a failure of a known kind, 143 for a
        run that was stopped.
    """
    with safe_output(), _warnings_in_one_line():
        words = list(sys.argv[1:] if argv is None else argv)
        return _main(words) if not words or words[0] != "train" else _with_others(words)


@contextlib.contextmanager
def _warnings_in_one_line() -> Generator[None]:
    """A context in which a warning is shown without the line of code that raised it."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"WARNING: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _with_others(argv: list[str]) -> int:
    """Runs a command that may connect this process with others; they learn how it ended."""
    from dynexit.core.processes import start

    try:
        code, why = _main(argv), "see its output"
    except Exception as error:
        if start.current() is None:
            raise
        start.wait_for_verdict()  # a lost peer ends this process here
        traceback.print_exc()
        code, why = FAILED, f"{type(error).__name__}: {error}"
    start.leave(code, why)
    return code


def _main(argv: list[str]) -> int:
    try:
        return _dispatch(argv)
    except SettingsError as error:
        return _refuse(str(error), BAD_INPUT)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _refuse(
                f"the disk is full: {error}. Free some space and run the same command again; it "
                "resumes the run.",
                FAILED,
            )
        raise
    except KeyboardInterrupt:
        return _refuse("stopped by the keyboard", 130)
    except Exception as error:
        if _is_known(error):
            return _refuse(str(error), FAILED)
        raise


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else BAD_INPUT
    command, rest = argv[0], argv[1:]
    # each command is imported when it is called, and imports JAX only after the settings are valid
    if command == "train":
        from dynexit.cli.train import train as run
    elif command == "sweep":
        from dynexit.cli.sweep import sweep as run
    elif command == "watch":
        from dynexit.cli.watch import watch as run
    elif command == "evaluate":
        from dynexit.cli.evaluate import evaluate as run
    elif command == "calibrate":
        from dynexit.cli.calibrate import calibrate as run
    elif command == "plot":
        from dynexit.cli.plot import plot as run
    elif command == "plan":
        from dynexit.cli.plan import plan as run
    elif command == "generate":
        from dynexit.cli.language.generate import generate as run
    elif command == "serve":
        from dynexit.cli.language.serve import serve as run
    elif command == "data":
        from dynexit.cli.data import data as run
    elif command == "launch":
        from dynexit.cli.launch import launch as run
    elif command == "bench":
        from dynexit.cli.bench import bench as run
    else:
        raise SettingsError(f"{command!r} is not a command\n{USAGE}")
    return run(rest)


def _is_known(error: Exception) -> bool:
    """Whether the error is one of the project's own, whose message is complete.

    Only loaded modules are searched.
    """
    known = (
        ("dynexit.data.store", ("DataNotPrepared", "DataDamaged")),
        ("dynexit.training.loop", ("NonFiniteLoss",)),
        ("dynexit.training.checkpointing.checkpoints", ("CheckpointError",)),
        ("dynexit.core.folder_lock", ("FolderInUse",)),
        ("dynexit.runs.launch.execute", ("LaunchError",)),
        ("dynexit.core.processes.member", ("ProcessMissing",)),
        ("dynexit.calibration.rules.rule", ("NoPoint",)),
    )
    kinds = [
        getattr(sys.modules[m], n)
        for m, names in known
        if m in sys.modules
        for n in names
        if hasattr(sys.modules[m], n)
    ]
    return isinstance(error, tuple(kinds))


def _refuse(message: str, code: int) -> int:
    print(f"dynexit: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
