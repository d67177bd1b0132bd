"""What methods share: logits out of an output, the answer, how many rows are right, means over the
rows that count.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from dynexit.core.labels import exact
from dynexit.core.types import Array, PyTree
from dynexit.objectives.multi_exit import mean_over_rows


def logits_of(output: PyTree) -> Array:
    """The logits `[..., C]`: the output itself or its entry "logits"."""
    return output["logits"] if isinstance(output, Mapping) else output


def predict(output: PyTree) -> Array:
    """The likeliest class at every place of one exit's output, int32 `[b, ...]`."""
    return jnp.argmax(logits_of(output), axis=-1).astype(jnp.int32)


def accuracy(output: PyTree, labels: Array) -> Array:
    """Fraction of the rows with a label that one exit answers rightly at all places that count,
    float32 `[]`.
    """
    return mean_over_rows(exact(predict(output), labels), labels)


def row_means(metrics: Mapping[str, Array], labels: Array) -> dict[str, Array]:
    """Metrics as float32 `[]`: the mean over the rows with a label of those that are `[B]`, and
    numbers as they are.
    """
    return {
        name: mean_over_rows(value, labels) if jnp.ndim(value) else jnp.float32(value)
        for name, value in metrics.items()
    }
