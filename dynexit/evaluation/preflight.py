"""Checks before training of what calibration and evaluation need of a method.

Nothing is compiled. `dynexit.data.late_faults` checks the data.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.labels import check_scored, rows_counted
from dynexit.core.shapes import PyTree
from dynexit.core.stages import stages_of
from dynexit.core.types import Candidates, Experiment
from dynexit.engine.observe import run_observed
from dynexit.evaluation.batches import prepared, taken_rows
from dynexit.evaluation.recording import kept_of


def check_experiment(experiment: Experiment) -> None:
    """Traces the passes of calibration on a few rows.

    Args:
      experiment: the experiment, before training.

    Raises:
      TypeError: `method` lacks what calibration needs, or its score does not take the labels.
      ValueError: a split without a label, or a criterion, a prediction or a score that does not fit
        the outputs.
    """
    method = experiment.method
    if not isinstance(method.candidates, Candidates):
        raise TypeError(
            "`method.candidates` must be dx.Candidates, such as dx.calibration.levels(thresholds, "
            f"full=...), got {type(method.candidates).__name__}"
        )
    for name in ("criterion", "predict", "score"):
        if not callable(getattr(method, name)):
            found = type(getattr(method, name)).__name__
            raise TypeError(f"`method.{name}` must be a function, got {found}")
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    for source in (experiment.calibration, experiment.test):
        examples = source.examples()
        labels = np.asarray(examples["labels"])
        if not rows_counted(labels).any():
            raise ValueError(f"`experiment.{source.split}` holds no row with a label")
        check_scored(labels[:2], method.score, f"experiment.{source.split}")
        few = taken_rows({k: examples[k] for k in ("inputs", "labels")}, slice(2))
        _trace(experiment, params, few["inputs"], few["labels"])


def _trace(experiment: Experiment, params: PyTree, inputs: PyTree, labels: np.ndarray) -> None:
    method, model = experiment.method, experiment.model
    exits = sum(
        stage.steps for stage in stages_of(jax.eval_shape(model.steps, params), model.depth)
    )
    fit, found = method.candidates.fit, {}
    if fit is not None:
        state = fit.begin(exits)
        found, _ = fit.finish(state)

        def measured(params: PyTree, inputs: PyTree, labels: Any) -> PyTree:
            begun = model.embed(params, prepared(experiment, inputs))
            observe = lambda i, output, memory: (fit.measure(state, i, output, labels), memory)
            return run_observed(model.steps(params), begun, model.depth, observe)

        jax.eval_shape(measured, params, inputs, jnp.asarray(labels))
    criterion = method.criterion(method.candidates.full(exits, found))
    jax.eval_shape(
        lambda params, inputs, labels: kept_of(experiment, params, criterion, inputs, labels),
        params,
        inputs,
        labels,
    )
