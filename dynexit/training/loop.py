"""The training loop: dispatches updates, stops at a signal and resumes where it stopped."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dynexit.core.files import local
from dynexit.core.folder_lock import in_use
from dynexit.core.labels import check_labels
from dynexit.core.processes.stall import StallWatch
from dynexit.core.processes.start import current
from dynexit.core.processes.together import from_first
from dynexit.core.settings import Training, valid_seed, validate
from dynexit.core.shapes import PyTree
from dynexit.core.types import Experiment
from dynexit.data.late_faults import refuse_late_faults
from dynexit.data.source import Batch, part
from dynexit.training import evals as evaluation
from dynexit.training.after_update import AfterUpdate, Flight, on_one_device, progress_bar
from dynexit.training.after_update import NonFiniteLoss as NonFiniteLoss
from dynexit.training.checkpointing.checkpoints import FOLDER, restore, set_aside_after
from dynexit.training.checkpointing.saver import Saver
from dynexit.training.logs import (
    FILE,
    Mirror,
    Records,
    read_records,
    without_clock,
    without_evaluation,
)
from dynexit.training.monitoring.profile import Profiler
from dynexit.training.monitoring.throughput import Throughput
from dynexit.training.parallel.mesh import make_mesh, replicated
from dynexit.training.parallel.placement import own_rows, put, put_batch
from dynexit.training.parallel.rules import TENSOR_PARALLEL, Rules
from dynexit.training.prefetch import ahead
from dynexit.training.signals import StopRequest
from dynexit.training.state import TrainState, create_state
from dynexit.training.step import TrainStep, make_train_step, on_mesh
from dynexit.training.streams import SafeStream


class Fitted(NamedTuple):
    """The result of training.

    Attributes:
      params: the trained parameters, float32; replicated ones on one device, those that the mesh
        splits where they were trained (`dx.training.whole` gathers them).
      step: updates made.
      stopped: True where a signal ended the run before its last step or within its last evaluation.
      metrics: the last step's, by name, and "step"; with the evaluation where there was one.
    """

    params: PyTree
    step: int
    stopped: bool
    metrics: dict[str, float]


def fit(
    experiment: Experiment,
    settings: Training,
    folder: Path | str,
    seed: int,
    resume: bool = True,
    progress: bool = True,
    evals: evaluation.Evals = (),
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    config: Mapping[str, Any] | None = None,
    profile: int = 0,
    stop: StopRequest | None = None,
    stall_minutes: float = 10.0,
) -> Fitted:
    """Trains the model of an experiment.

    `folder/metrics.jsonl` gets the records, `folder/checkpoints` the newest states and
    `folder/best` the parameters with the highest score on the calibration split (see
    `evals.score`).

    Equal seed, settings and mesh give equal bits, also where a run was stopped and resumed, and
    with or without evaluation: batch, augmentation and learning rate of step s are functions of
    seed and s, and the checkpoint has the rest. SIGTERM, SIGHUP, SIGUSR1 and the first SIGINT save
    and stop, after the running update or the running batch of an evaluation; the run that resumes
    repeats that evaluation. With several processes (see `dynexit.core.processes`) a signal to one
    stops all at the same place; each reads its own rows of a batch, and process 0 writes. Where
    `jax.distributed` alone has connected them, they stop between updates.

    Args:
      experiment: from an experiment file's `build`.
      settings: see `Training`; `eval_every` says when the calibration split is evaluated.
      folder: the run's.
      seed: for initialisation, augmentation and the order of the data.
      resume: continue from the newest undamaged checkpoint, if there is one; if False the folder
        must have none.
      progress: show a progress bar on standard error. Write errors there are ignored.
      evals: further evaluations, pairs `(name, function)` with `function(params) -> {key:
        number}`, computed together with that of the calibration split and recorded as
        `eval_<name>_<key>`.
      mesh: from `make_mesh`; None for data parallelism over all devices.
      rules: which parameters the axis "model" splits, see `parallel/rules.py`; None for those of
        dynexit's own models.
      config: what wandb shows as the run's settings; None for those of training and the seed.
      profile: updates to trace with `jax.profiler`, after those that compile, into
        `folder/profile`.
      stop: says when to stop, a context that was entered; None for one of its own.
      stall_minutes: minutes without an update after which a line says so; 0 for never.

    Returns:
      `Fitted`.

    Raises:
      NonFiniteLoss: the loss or gradient of a step is not finite; the step is named.
      CheckpointError: a checkpoint could not be written (disk full), or all are damaged.
      FileExistsError: the folder has checkpoints and `resume` is False.
      FolderInUse: another process trains in the folder.
      TypeError: labels that the method's `score` cannot compare.
      ValueError: settings or seed out of range, labels that are not classes, a NaN in the
        calibration split, `evals` without evaluation; the batch cannot be split over the devices;
        the folder's checkpoint is of another model, seed or longer run.
    """
    if invalid := [*validate(settings), *valid_seed(seed)]:
        raise ValueError("`settings`: " + "; ".join(invalid))
    if evals and settings.eval_every == 0:
        raise ValueError("`evals` needs `eval_every` other than 0 in `settings`")
    folder, mesh = local(folder, "folder").absolute(), make_mesh() if mesh is None else mesh
    rules = TENSOR_PARALLEL if rules is None else rules
    train_step = make_train_step(experiment, settings, mesh, rules)

    def draw(step: int) -> Batch:
        size = settings.batch_size
        first, last = own_rows(size, mesh)
        drawn = part(experiment.train, seed, step, size, first, last)
        check_labels(drawn["labels"], len(experiment.classes), "experiment.train")
        placed = put_batch(drawn, mesh, first=first, size=size)
        return {**placed, "step": put(np.asarray(step, np.int32), replicated(mesh))}

    stream = SafeStream(sys.stderr)
    say = lambda line: print(line, file=stream, flush=True) if progress else None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(in_use(folder))
        start = create_state(experiment, settings, seed, mesh, rules)
        state, first = _resumed(start, settings, folder, seed, resume)
        if first < settings.steps:
            refuse_late_faults(experiment, seed, settings.batch_size)
        if first and jax.process_index() == 0:
            say(f"training goes on from the checkpoint of step {first} of {settings.steps}")
        if stop is None:
            stop = StopRequest()
            if jax.process_count() == 1 or current() is not None:
                stack.enter_context(stop).attach(current())
        config = config or {**dataclasses.asdict(settings), "seed": seed}
        run = AfterUpdate(
            settings,
            records=stack.enter_context(Records(folder, after=first)),
            mirror=stack.enter_context(Mirror(folder, settings.wandb, config)),
            saver=stack.enter_context(Saver(folder, settings.keep, seed)),
            bar=stack.enter_context(progress_bar(settings, first, progress, stream)),
            stream=stream,
            evaluate=evaluation.make_evaluate(
                on_mesh(experiment, settings, mesh, rules), settings, mesh, evals, stop.check
            ),
            first=first,
            throughput=Throughput(experiment, settings, mesh.size),
            stop=stop,
            stall=stack.enter_context(StallWatch(stall_minutes, say)),
        )
        beside = lambda line: run.bar.write(line, file=stream)
        profiler = stack.enter_context(Profiler(folder, profile, first, settings.steps, beside))
        run.saver.saved = first if first else -1
        batches = stack.enter_context(contextlib.closing(ahead(draw, first, settings.steps)))
        if first and evaluation.is_due(settings, first):
            find = lambda: without_evaluation(folder, first)
            if (record := from_first(find, "reads the records")) is not None:
                run.evaluate_again(record, state)
        state, done = _steps(run, train_step, state, first, batches, stop, profiler)
        if run.saver.saved != done:
            run.saver.save(done, state)
        run.saver.finish()
        stop.saved()
    metrics = run.last or without_clock((read_records(folder / FILE) or [{"step": done}])[-1])
    stopped = done < settings.steps or run.interrupted
    return Fitted(jax.tree.map(on_one_device, state.params), done, stopped, metrics)


def _resumed(
    state: TrainState, settings: Training, folder: Path, seed: int, resume: bool
) -> tuple[TrainState, int]:
    """The newest checkpoint's state and step, or the initial `state` and 0."""
    if not resume:
        if any((folder / FOLDER).glob("*")):
            raise FileExistsError(
                f"{folder} already holds checkpoints; resume the run or choose another folder"
            )
        return state, 0
    found = restore(folder, state, together=True)
    if found is not None and found.seed != seed:
        raise ValueError(
            f"`seed` is {seed}, but the run in {folder} was started with {found.seed}; "
            "resume it with that one"
        )
    if found is not None and found.step > settings.steps:
        raise ValueError(
            f"`steps` is {settings.steps}, but the run in {folder} is already at step {found.step}"
        )
    if jax.process_index() == 0:
        set_aside_after(folder, found.step if found else -1)
    return (found.tree, found.step) if found else (state, 0)


def _steps(
    run: AfterUpdate,
    train_step: TrainStep,
    state: TrainState,
    first: int,
    batches: Iterator[Batch],
    stop: StopRequest,
    profiler: Profiler,
) -> tuple[TrainState, int]:
    """Dispatches each update before it reads the metrics of the one before, so that the device does
    not wait for the host, except where an evaluation is due.
    """
    flight, done, settings = None, first, run.settings
    while done < settings.steps and not _should_stop(stop, done):
        run.stall.at(f"waiting for the batch of update {done + 1}")
        batch = next(batches)
        run.stall.at(f"dispatching update {done + 1}")
        with profiler.update(done):
            state, metrics = train_step(state, batch)
        done += 1
        profiler.after(done, metrics)
        due = done == settings.steps or done % settings.checkpoint_every == 0
        snapshot = jax.tree.map(jnp.copy, state) if due else None
        run.settle(flight, state)
        flight = Flight(done, metrics, snapshot)
        if evaluation.is_due(settings, done):
            run.settle(flight, state)
            flight = None
    run.settle(flight, state)
    return state, done


def _should_stop(stop: StopRequest, done: int) -> bool:
    if jax.process_count() > 1 and current() is None:  # connected by `jax.distributed` alone
        return multihost_utils.reached_preemption_sync_point(done)
    return stop.should_stop()
