"""What methods share: logits out of an output, the answer, how many rows are right, candidates for
a threshold.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

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


def candidate_levels(
    values: Any, full: float, high: float = np.inf, name: str = "thresholds"
) -> np.ndarray:
    """Candidates for a threshold in 0..high, float32 `[K]`, among them the one at which no row ever
    leaves early.

    Raises:
      ValueError: another shape, a value out of range, or none that is full depth.

    Example:
      >>> candidate_levels([0.0, 0.5], full=0.0).tolist()
      [0.0, 0.5]
    """
    levels = np.asarray(values, np.float32)
    if levels.ndim != 1 or not ((levels >= 0) & (levels <= high)).all() or full not in levels:
        within = "be at least 0" if high == np.inf else f"lie in 0..{high:g}"
        raise ValueError(
            f"`{name}` must have shape [K], {within} and hold {full:g} (full depth), got {levels.tolist()}"
        )
    return levels
