"""The record of a run: `metrics.jsonl` is authoritative; wandb mirrors it and may fail.

One JSON object per line, flushed as it is written. Fields named in `CLOCK` are wall-clock readings;
without them the file of an interrupted and resumed run equals that of an uninterrupted one. Fields
that begin with `EVAL` come from evaluation during training (`evals.py`).
"""

import json
import math
import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynexit.core.files import replacing

FILE = "metrics.jsonl"
CLOCK = (
    "seconds",
    "examples_per_second",
    "eval_seconds",
    "flops_per_second",
    "model_flops_utilisation",
    "memory_peak_bytes",
)
EVAL = "eval_"


class Records:
    """Appends records to `folder/metrics.jsonl`. A context. With several processes only process 0
    writes.

    Args:
      folder: the run's, made if missing.
      after: the update from which the run continues; records of later updates and damaged lines
        are removed from the file.
    """

    def __init__(self, folder: Path, after: int = 0):
        self._path, self._file = Path(folder) / FILE, None
        if _is_first():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite(after)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record, which has a "step". A value that is not finite is written as null."""
        if self._file is not None:
            self._file.write(_line(record))
            self._file.flush()

    def replace(self, record: Mapping[str, Any]) -> None:
        """Writes one record in place of those of its update and of later ones, all or nothing."""
        if self._file is not None:
            self._file.close()
            self._rewrite(int(record["step"]) - 1, record)

    def _rewrite(self, after: int, *more: Mapping[str, Any]) -> None:
        kept = [record for record in read_records(self._path) if record["step"] <= after]
        with replacing(self._path) as draft:  # a link is replaced, not followed
            draft.write_text("".join(map(_line, [*kept, *more])), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")


def _line(record: Mapping[str, Any]) -> str:
    finite = {
        n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in record.items()
    }
    return json.dumps(finite) + "\n"


def without_evaluation(folder: Path | str, step: int) -> dict[str, Any] | None:
    """The last record, if it is of this update and a stop has interrupted its evaluation.

    Every record with an evaluation has "eval_seconds".

    Args:
      folder: the run's.
      step: the update from which the run continues.
    """
    records = [r for r in read_records(Path(folder) / FILE) if r["step"] <= step]
    if not records or records[-1]["step"] != step or "eval_seconds" in records[-1]:
        return None
    return records[-1]


def read_records(path: Path | str) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; none where there is no file.

    Lines that are not a JSON object with an integer "step" are skipped. A warning counts them and
    names their numbers, except for a last line without its end, which a killed run leaves behind.

    Args:
      path: the file.
    """
    records, damaged = [], []
    lines = Path(path).read_bytes().split(b"\n") if Path(path).is_file() else [b""]
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        warnings.warn(
            f"{path}: {len(damaged)} of {len(lines) - 1} lines are damaged and skipped: {shown}",
            RuntimeWarning,
            stacklevel=2,
        )
    return records


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # invalid UTF-8 included
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def without_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its wall-clock fields, equal for two runs of equal seed.

    Example:
      >>> without_clock({"step": 20, "loss": 0.5, "seconds": 1.2})
      {'step': 20, 'loss': 0.5}
    """
    return {name: value for name, value in record.items() if name not in CLOCK}


class Mirror:
    """Sends records to wandb. A context. After the first failure a warning is raised and training
    continues without it.

    Args:
      folder: the run's; it holds wandb's own files and `wandb_id.txt`, by which a resumed run
        continues as the same wandb run.
      mode: "online", "offline", "off", or "auto": online where wandb finds a key, offline where it
        does not.
      config: the run's settings, shown by wandb.
    """

    def __init__(self, folder: Path, mode: str, config: Mapping[str, Any]):
        self._run: Any = None
        if mode != "off" and _is_first():
            self._try(lambda: self._start(Path(folder), mode, config))

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._run is not None:
            self._try(lambda: self._run.finish(exit_code=0 if kind is None else 1))

    def write(self, record: Mapping[str, Any]) -> None:
        """Sends one record, which has a "step"."""
        if self._run is not None:
            from dynexit.training.monitoring.panels import panels

            self._try(lambda: self._run.log(panels(record), step=record["step"]))

    def _start(self, folder: Path, mode: Any, config: Mapping[str, Any]) -> None:
        import wandb

        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
        note = folder / "wandb_id.txt"
        if not note.is_file() or note.is_symlink():
            with replacing(note) as draft:
                draft.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            project="dynexit",
            name=folder.name,
            id=note.read_text().strip(),
            dir=folder,
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=dict(config),
            group=os.environ.get("WANDB_RUN_GROUP"),  # of a sweep
        )

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # no failure of the mirror may stop the run
            self._run = None
            warnings.warn(
                f"wandb failed, training continues with {FILE} alone: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


def _is_first() -> bool:
    """Whether this process is process 0. Commands that only read records load no JAX."""
    import jax

    return jax.process_index() == 0
