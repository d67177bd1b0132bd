"""The record of a run: `metrics.jsonl` is the truth, wandb mirrors it and may fail.

One JSON object per line, flushed as it is written. Fields named in `CLOCK` are wall-clock readings;
without them the file of an interrupted and resumed run equals that of an uninterrupted one.
"""

import json
import math
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

FILE = "metrics.jsonl"
CLOCK = ("seconds", "examples_per_second")


class Records:
    """Appends records to `folder/metrics.jsonl`. A context. With several processes only process 0
    writes.

    Args:
      folder: the run's, made if missing.
      after: the step to go on from: records of later steps, and a line cut short, are dropped.
    """

    def __init__(self, folder: Path, after: int = 0):
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = None
        if jax.process_index() == 0:
            kept = [record for record in read_records(path) if record["step"] <= after]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
            partial.replace(path)
            self._file = path.open("a")

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *exception) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; it has a "step". A value that is not finite is written as null, which
        JSON can hold.
        """
        if self._file is not None:
            held = {
                n: None if isinstance(v, float) and not math.isfinite(v) else v
                for n, v in record.items()
            }
            self._file.write(json.dumps(held) + "\n")
            self._file.flush()


def read_records(path: Path | str) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, up to a line cut short by a crash; none where there is no
    file.
    """
    records = []
    if Path(path).is_file():
        for line in Path(path).read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def without_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its wall-clock fields: what two runs of equal seed share.

    Example:
      >>> without_clock({"step": 20, "loss": 0.5, "seconds": 1.2})
      {'step': 20, 'loss': 0.5}
    """
    return {name: value for name, value in record.items() if name not in CLOCK}


class Mirror:
    """Sends records to wandb. A context. Whatever fails is said once, in a warning, and training
    goes on without it.

    Args:
      folder: the run's; wandb's own files go there, and `wandb_id.txt`, by which a resumed run goes
        on as the same one.
      mode: "online", "offline", "off", or "auto": online where wandb finds a key, offline where it
        does not.
      config: what to show as the run's settings.
    """

    def __init__(self, folder: Path, mode: str, config: Mapping[str, Any]):
        self._run: Any = None
        if mode != "off" and jax.process_index() == 0:
            self._try(lambda: self._start(Path(folder), mode, config))

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, kind, *exception) -> None:
        if self._run is not None:
            self._try(lambda: self._run.finish(exit_code=0 if kind is None else 1))

    def write(self, record: Mapping[str, Any]) -> None:
        """Sends one record; it has a "step"."""
        if self._run is not None:
            self._try(lambda: self._run.log(dict(record), step=record["step"]))

    def _start(self, folder: Path, mode: Any, config: Mapping[str, Any]) -> None:
        import wandb

        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
        note = folder / "wandb_id.txt"
        if not note.is_file():
            note.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project="dynexit",
            name=folder.name,
            id=note.read_text().strip(),
            dir=folder,
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=dict(config),
        )

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a mirror: nothing that breaks in it may stop the run
            self._run = None
            warnings.warn(
                f"wandb failed, training goes on with {FILE} alone: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
