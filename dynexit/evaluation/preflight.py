"""What calibration and evaluation would refuse after training, found before it. Nothing is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import stages_of
from dynexit.core.labels import rows_counted
from dynexit.core.types import Candidates, Experiment, PyTree, Source
from dynexit.engine.observe import run_observed
from dynexit.evaluation.batches import batches, prepared, taken_rows
from dynexit.evaluation.recording import kept_of

CHECKED = 4096  # rows that are looked through at a time


def check_experiment(experiment: Experiment) -> None:
    """Traces the passes of calibration on a few rows, and looks through the two splits.

    Args:
      experiment: about to be trained.

    Raises:
      TypeError: `method` lacks what calibration needs, or its score does not take the labels.
      ValueError: a NaN among the inputs, a split without a label, or a criterion, a prediction or a
        score that does not fit the outputs.
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
        _check_rows(examples, source)
        few = taken_rows({k: examples[k] for k in ("inputs", "labels")}, slice(2))
        _trace(experiment, params, few["inputs"], few["labels"])


def _check_rows(examples: dict, source: Source) -> None:
    if not rows_counted(np.asarray(examples["labels"])).any():
        raise ValueError(f"`{source.split}` holds no row with a label")
    for batch in batches({"inputs": examples["inputs"], "labels": examples["labels"]}, CHECKED):
        for path, leaf in jax.tree_util.tree_flatten_with_path(batch.inputs)[0]:
            if leaf.dtype.kind != "f":
                continue
            broken = np.isnan(leaf).reshape(len(leaf), -1).any(axis=1)
            if broken.any():
                raise ValueError(
                    f"`{source.split}` inputs{jax.tree_util.keystr(path)} hold a NaN, first in row "
                    f"{batch.rows[int(np.argmax(broken))]}"
                )


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
