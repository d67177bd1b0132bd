"""The training loop: dispatches steps, keeps the records and checkpoints, stops cleanly and goes on
where it stopped.
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dynexit.core.labels import check_labels
from dynexit.core.settings import Training, validate
from dynexit.core.types import Array, Experiment, PyTree
from dynexit.training.checkpoints import Saver, restore, set_aside_after
from dynexit.training.collapse import CollapseWatch
from dynexit.training.logs import FILE, Mirror, Records, read_records, without_clock
from dynexit.training.prefetch import ahead
from dynexit.training.sharding import data_mesh, put, put_batch, replicated
from dynexit.training.signals import StopRequest
from dynexit.training.state import TrainState, create_state
from dynexit.training.step import TrainStep, make_train_step


class NonFiniteLoss(ArithmeticError):
    """The loss or the gradient stopped being finite; the state before that step is saved."""


class Fitted(NamedTuple):
    """What training returns.

    Attributes:
      params: the trained parameters, float32, on one device where they were on each.
      step: updates made.
      stopped: True where a signal ended the run before its last step.
      metrics: the last step's, by name, and "step".
    """

    params: PyTree
    step: int
    stopped: bool
    metrics: dict[str, float]


class _Flight(NamedTuple):
    """A step that was dispatched and whose metrics were not read yet."""

    step: int
    metrics: dict[str, Array]
    snapshot: TrainState | None


def fit(
    experiment: Experiment,
    settings: Training,
    folder: Path | str,
    seed: int,
    resume: bool = True,
    progress: bool = True,
) -> Fitted:
    """Trains an experiment's model on all devices, with records in `folder/metrics.jsonl` and
    checkpoints in `folder/checkpoints`.

    Equal seed, settings and mesh give equal bits, also where a run was stopped and resumed: batch,
      augmentation and
    rate of step s are functions of seed and s, and the checkpoint has all else. SIGTERM, and the
    first SIGINT, save and stop. With several processes, begun with `jax.distributed.initialize`, a
    SIGTERM to one stops all at one step; process 0 writes.

    Args:
      experiment: from an experiment file's `build`.
      settings: see `Training`.
      folder: the run's.
      seed: for initialisation, augmentation and the order of the data.
      resume: go on from the newest good checkpoint, if there is one; otherwise the folder must hold
        none.
      progress: show a progress bar on stderr.

    Returns:
      `Fitted`.

    Raises:
      NonFiniteLoss: names the step.
      CheckpointError: a checkpoint could not be written (disk full), or all are damaged.
      FileExistsError: the folder has checkpoints and `resume` is False.
      ValueError: settings out of range, labels that are no class; the batch cannot be split over
        the devices; the folder's checkpoint is of another model, seed or longer run.
    """
    if wrong := validate(settings):
        raise ValueError("`settings`: " + "; ".join(wrong))
    folder, mesh = Path(folder).absolute(), data_mesh()
    train_step = make_train_step(experiment, settings, mesh)
    state, first = _begin(
        create_state(experiment, settings, seed, mesh), settings, folder, seed, resume
    )

    def draw(step: int) -> dict:
        drawn = experiment.train.batch(seed, step, settings.batch_size)
        check_labels(drawn["labels"], len(experiment.classes), "experiment.train")
        return {**put_batch(drawn, mesh), "step": put(np.asarray(step, np.int32), replicated(mesh))}

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest(catch=jax.process_count() == 1))
        run = _Run(
            settings,
            records=stack.enter_context(Records(folder, after=first)),
            mirror=stack.enter_context(
                Mirror(folder, settings.wandb, {**dataclasses.asdict(settings), "seed": seed})
            ),
            saver=stack.enter_context(Saver(folder, settings.keep, seed)),
            bar=stack.enter_context(_bar(settings, first, progress)),
            first=first,
        )
        run.saver.saved = first if first else -1
        batches = stack.enter_context(contextlib.closing(ahead(draw, first, settings.steps)))
        state, done = _steps(run, train_step, state, first, batches, stop)
        if run.saver.saved != done:
            run.saver.save(done, state)
        run.saver.finish()
    metrics = run.last or without_clock((read_records(folder / FILE) or [{"step": done}])[-1])
    return Fitted(jax.tree.map(_on_one_device, state.params), done, done < settings.steps, metrics)


def _begin(
    state: TrainState, settings: Training, folder: Path, seed: int, resume: bool
) -> tuple[TrainState, int]:
    """The newest checkpoint's state and step, or the fresh `state` and 0."""
    if not resume:
        if any((folder / "checkpoints").glob("*")):
            raise FileExistsError(
                f"{folder} already holds checkpoints; resume the run or choose another folder"
            )
        return state, 0
    found = restore(folder, state)
    if found is not None and found.seed != seed:
        raise ValueError(
            f"`seed` is {seed}, but the run in {folder} was begun with {found.seed}; resume it with that one"
        )
    if found is not None and found.step > settings.steps:
        raise ValueError(
            f"`steps` is {settings.steps}, but the run in {folder} is already at step {found.step}"
        )
    if jax.process_index() == 0:
        set_aside_after(folder, found.step if found else -1)
    return (found.tree, found.step) if found else (state, 0)


def _steps(
    run: "_Run", train_step: TrainStep, state: TrainState, first: int, batches, stop: StopRequest
) -> tuple[TrainState, int]:
    """Dispatches each step before it reads the metrics of the one before, so that the device never
    waits for the host.
    """
    flight, done = None, first
    while done < run.settings.steps and not _should_stop(stop, done):
        state, metrics = train_step(state, next(batches))
        done += 1
        last = done == run.settings.steps
        snapshot = (
            jax.tree.map(jnp.copy, state)
            if last or done % run.settings.checkpoint_every == 0
            else None
        )
        run.settle(flight, state)
        flight = _Flight(done, metrics, snapshot)
    run.settle(flight, state)
    return state, done


def _on_one_device(array: Array) -> Array:
    return array.addressable_data(0) if array.is_fully_replicated else array


def _should_stop(stop: StopRequest, step: int) -> bool:
    if jax.process_count() == 1:
        return stop.requested
    return multihost_utils.reached_preemption_sync_point(step)


class _Run:
    """What happens to the metrics of a step once it has run."""

    def __init__(
        self,
        settings: Training,
        records: Records,
        mirror: Mirror,
        saver: Saver,
        bar: Any,
        first: int,
    ):
        self.settings, self.saver = settings, saver
        self.last: dict[str, float] = {}
        self._records, self._mirror, self._bar = records, mirror, bar
        self._watch = CollapseWatch()
        self._began = self._logged_at = time.perf_counter()
        self._logged_step = first

    def settle(self, flight: _Flight | None, state: TrainState) -> None:
        """Waits for a step, records it and saves its snapshot; `state` is the newest.

        Raises:
          NonFiniteLoss: after saving `state`, which the failed step and any after it left as it
            was.
        """
        if flight is None:
            return
        values = jax.device_get(flight.metrics)
        if not values.pop("finite"):
            good = flight.step - 1
            if self.saver.saved != good:
                self.saver.save(good, state)
            what = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
            raise NonFiniteLoss(f"step {flight.step}: {what}; the state after step {good} is saved")
        self.last = {"step": flight.step, **{name: float(value) for name, value in values.items()}}
        self._bar.update()
        if flight.step in (1, self.settings.steps) or flight.step % self.settings.log_every == 0:
            self._log(flight.step)
        self.saver.raise_if_failed()
        if flight.snapshot is not None:  # after the record: whoever resumes here finds it
            self.saver.save(flight.step, flight.snapshot)

    def _log(self, step: int) -> None:
        now = time.perf_counter()
        speed = (step - self._logged_step) * self.settings.batch_size / (now - self._logged_at)
        self._logged_step, self._logged_at = step, now
        record = {
            **self.last,
            "seconds": round(now - self._began, 3),
            "examples_per_second": round(speed, 1),
        }
        self._records.write(record)
        self._mirror.write(record)
        for collapse in self._watch.look(self.last):
            self._bar.write(f"warning: {collapse}", file=sys.stderr)
        self._bar.set_postfix_str(f"loss {self.last['loss']:.4f}, {speed:.0f} examples/s")


def _bar(settings: Training, first: int, progress: bool) -> Any:
    from tqdm import tqdm

    quiet = not progress or jax.process_index() != 0
    pace = 0.1 if sys.stderr.isatty() else 30.0  # a log file wants few lines
    return tqdm(
        total=settings.steps,
        initial=first,
        unit="step",
        disable=quiet,
        mininterval=pace,
        dynamic_ncols=True,
    )
