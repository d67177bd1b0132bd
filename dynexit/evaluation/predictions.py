"""What every exit says about every example of a split."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.calibration.curve import Predictions
from dynexit.core.types import Experiment, PyTree, Source
from dynexit.engine.run import run_all


def predict(experiment: Experiment, params: PyTree, source: Source, batch_size: int) -> Predictions:
    """Runs all exits over all examples of a split, in batches of one size (the last is padded);
    outputs go to the host.

    Args:
      experiment: model and preparation of the inputs.
      params: the model's parameters.
      source: the split.
      batch_size: rows per call; changes no result beyond rounding.

    Returns:
      Outputs with leaves `[E, M, ...]` in float32 where they were floats, labels `[M]`, and a
      fingerprint of the data.
    """
    examples = source.examples()
    inputs, labels = examples["inputs"], np.asarray(examples["labels"])

    @jax.jit
    def run(params, inputs):
        state = experiment.model.embed(params, prepared(experiment, inputs))
        return run_all(experiment.model.steps(params), state, experiment.model.depth)

    parts = []
    for start in range(0, len(labels), batch_size):
        rows = np.arange(start, start + batch_size) % len(
            labels
        )  # pads the last batch with the first rows
        kept = min(batch_size, len(labels) - start)
        outputs = run(params, jax.tree.map(lambda a, rows=rows: a[rows], inputs))
        parts.append(jax.tree.map(lambda a, kept=kept: _on_host(a[:, :kept]), outputs))
    outputs = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)
    return Predictions(source.split, outputs, labels, fingerprint(examples))


def prepared(experiment: Experiment, inputs: PyTree) -> PyTree:
    """The inputs as the model wants them."""
    return experiment.prepare(inputs) if experiment.prepare is not None else inputs


def fingerprint(examples: dict) -> str:
    """sha256 of inputs and labels: equal splits have equal fingerprints."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(examples)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _on_host(a: jax.Array) -> np.ndarray:
    return np.asarray(a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a)
