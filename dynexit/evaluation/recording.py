"""Passes of a network over a split: statistics that a method fits, and the records of every exit.

Each exit is reduced to a few numbers per row before the next block runs, so memory holds one
exit's output of one batch, and the records.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.calibration.records import Records, observed
from dynexit.core.checks import shapes
from dynexit.core.labels import rows_counted
from dynexit.core.processes.together import nothing
from dynexit.core.shapes import AnyArray, Array, Bool, ExitRows, PyTree, Rows, Shaped
from dynexit.core.stages import stages_of
from dynexit.core.types import Criterion, Experiment, Source
from dynexit.criteria.memory import first_memory
from dynexit.engine.observe import run_observed
from dynexit.engine.run import walk
from dynexit.evaluation.batches import batches, fingerprint, prepared
from dynexit.evaluation.devices import Devices


def record(
    experiment: Experiment,
    params: PyTree,
    source: Source,
    batch_size: int,
    criterion: Criterion,
    devices: Devices | None = None,
    between: Callable[[], None] = nothing,
) -> Records:
    """Runs all exits over all examples of a split, in batches of one size.

    Args:
      experiment: model, method and preparation of the inputs.
      params: the model's parameters.
      source: the split; its arrays are read batch by batch.
      batch_size: rows per call; changes no result beyond rounding.
      criterion: whose scores are kept; its thresholds do not matter.
      devices: that run a batch each, with `params` placed on them; None for one device. Where they
        are those of several processes, all call it and have the records.
      between: is called before each batch; what it raises ends the pass.

    Returns:
      `Records`.

    Raises:
      TypeError, ValueError: labels that the method's score cannot take, or a faulty criterion.
    """
    examples, devices = source.examples(), devices or Devices()
    shared = params, devices.place(criterion)
    run = devices.compile(lambda shared, rows: kept_of(experiment, *shared, *rows), axis=1)
    parts = []
    size = batch_size * devices.count
    for batch in batches(examples, size, devices.own(size)):
        between()
        kept = run(shared, (batch.inputs, batch.labels))
        parts.append(jax.tree.map(lambda a, n=batch.kept: np.asarray(a)[:, :n], kept))
    kept = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)
    labels = np.asarray(examples["labels"])
    digest = devices.from_first(lambda: fingerprint(examples), "reads the whole split")
    counts = rows_counted(labels)
    return Records(source.split, labels=labels, counts=counts, fingerprint=digest, **kept)


def kept_of(
    experiment: Experiment,
    params: PyTree,
    criterion: Criterion,
    inputs: Rows,
    labels: Shaped[AnyArray, "B ..."],
) -> dict[str, ExitRows]:
    """The part of a batch that `record` keeps, leaves `[E, B, ...]`; traced."""
    model, method, labels = experiment.model, experiment.method, jnp.asarray(labels)
    state, step = model.embed(params, prepared(experiment, inputs)), model.steps(params)
    stages = stages_of(step, model.depth)
    _, output = walk(stages, shapes(state))
    exits = sum(stage.steps for stage in stages)
    memory = first_memory(criterion, labels.shape[0], output, exits).score
    observe = observed(criterion, method.predict, method.score, labels)
    return run_observed(step, state, model.depth, observe, memory)


def fitted(
    experiment: Experiment,
    params: PyTree,
    source: Source,
    batch_size: int,
    rows: Bool[np.ndarray, "M"] | None = None,
    devices: Devices | None = None,
    between: Callable[[], None] = nothing,
) -> tuple[PyTree, tuple[str, ...]]:
    """What the method fits on a split (`Candidates.fit`), and remarks.

    Args:
      experiment, params, source, batch_size, devices, between: as in `record`.
      rows: bool `[M]`, the rows to fit on; None for all.

    Returns:
      The fitted pytree, `{}` where the method fits nothing, and sentences for the log.
    """
    fit = experiment.method.candidates.fit
    if fit is None:
        return {}, ()
    model, examples, devices = experiment.model, source.examples(), devices or Devices()
    counts = rows_counted(np.asarray(examples["labels"]))
    wanted = counts if rows is None else counts & rows

    def measure(shared: tuple[PyTree, PyTree], rows: tuple[PyTree, Array]) -> PyTree:
        (params, state), (inputs, labels) = shared, rows

        def observe(i: Any, output: PyTree, memory: PyTree) -> tuple[PyTree, PyTree]:
            return fit.measure(state, i, output, labels), memory

        begun = model.embed(params, prepared(experiment, inputs))
        return run_observed(model.steps(params), begun, model.depth, observe)

    run = devices.compile(measure, axis=1)
    state, finished = fit.begin(exits_of(experiment, params)), False
    size = batch_size * devices.count
    while not finished:
        sums: Any = None
        shared = params, devices.place(state)
        for batch in batches(examples, size, devices.own(size)):
            used = wanted[batch.rows] & (np.arange(len(batch.rows)) < batch.kept)
            if not used.any():
                continue
            between()
            terms = run(shared, (batch.inputs, batch.labels))
            part = jax.tree.map(
                lambda a, used=used: np.asarray(a, np.float64)[:, used].sum(axis=1), terms
            )
            sums = part if sums is None else jax.tree.map(np.add, sums, part)
        if sums is None:
            raise ValueError(f"`source` {source.split!r} holds no row with a label to fit on")
        # hosts may round differently
        state, finished = devices.agreed(fit.advance(state, sums), "fits statistics")
    return fit.finish(state)


def exits_of(experiment: Experiment, params: PyTree) -> int:
    """E, the number of exits."""
    stages = stages_of(jax.eval_shape(experiment.model.steps, params), experiment.model.depth)
    return sum(stage.steps for stage in stages)
