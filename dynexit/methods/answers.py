"""What methods that answer with a class share: logits out of an output, the answer, how many rows are right."""

from collections.abc import Mapping

import jax.numpy as jnp

from dynexit.core.labels import exact
from dynexit.core.types import Array, PyTree


def logits_of(output: PyTree) -> Array:
    """The logits `[..., C]`: the output itself or its entry "logits"."""
    return output["logits"] if isinstance(output, Mapping) else output


def predict(output: PyTree) -> Array:
    """The likeliest class at every place of one exit's output, int32 `[b, ...]`."""
    return jnp.argmax(logits_of(output), axis=-1).astype(jnp.int32)


def accuracy(output: PyTree, labels: Array) -> Array:
    """Fraction of the rows that one exit answers rightly at all places that count, float32 `[]`."""
    return exact(predict(output), labels).mean(dtype=jnp.float32)
