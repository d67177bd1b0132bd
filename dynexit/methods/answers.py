"""Logits, predictions and means over rows, shared by the methods."""

from collections.abc import Mapping

import jax.numpy as jnp

from dynexit.core.labels import exact
from dynexit.core.shapes import Array, Float, Int, PyTree, Shaped
from dynexit.objectives.multi_exit import mean_over_rows


def logits_of(output: PyTree) -> Float[Array, "*rows C"]:
    """The logits `[..., C]`: the output itself or its entry "logits"."""
    return output["logits"] if isinstance(output, Mapping) else output


def predict(output: PyTree) -> Int[Array, "b ..."]:
    """The likeliest class at every place of one exit's output, int32 `[b, ...]`."""
    return jnp.argmax(logits_of(output), axis=-1).astype(jnp.int32)


def accuracy(output: PyTree, labels: Int[Array, "B ..."]) -> Float[Array, ""]:
    """Fraction of the labelled rows whose places are all predicted right, float32 `[]`."""
    return mean_over_rows(exact(predict(output), labels), labels)


def row_means(
    metrics: Mapping[str, Shaped[Array, "..."]], labels: Shaped[Array, "B ..."]
) -> dict[str, Float[Array, ""]]:
    """Metrics as float32 `[]`: a metric `[B]` is averaged over the rows with a label."""
    return {
        name: mean_over_rows(value, labels) if jnp.ndim(value) else jnp.float32(value)
        for name, value in metrics.items()
    }
