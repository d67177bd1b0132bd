"""Arguments of exit rules as leaves of a pytree, and what a rule reads of an output."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynexit.core.types import Array, PyTree

Read = Callable[[PyTree], Array] | None


def threshold_leaf(value: Any, name: str = "threshold") -> Array:
    """A threshold as a float32 array, scalar or `[E-1]`."""
    return leaf(value, name, "[E-1]")


def exits_of(threshold: Array) -> int | None:
    """The number of exits that a threshold is meant for, None for any."""
    return threshold.shape[0] + 1 if threshold.ndim else None


def threshold_and_temperature(threshold: Any, temperature: Any) -> tuple[Array, Array, int | None]:
    """Both as float32 arrays, and the number of exits that they are meant for.

    Raises:
      ValueError: a temperature not above 0, or the two are meant for different numbers of exits.
    """
    threshold = threshold_leaf(threshold)
    temperature = leaf(temperature, "temperature", "[E]")
    if not isinstance(temperature, Tracer) and not (np.asarray(temperature) > 0).all():
        raise ValueError(f"`temperature` must be above 0, got {np.asarray(temperature).tolist()}")
    exits = exits_of(threshold)
    if temperature.ndim:
        if exits not in (None, temperature.shape[0]):
            raise ValueError(
                f"`temperature` has shape {temperature.shape}, for {temperature.shape[0]} exits, and `threshold` has shape "
                f"{threshold.shape}, for {exits}: the last exit takes everyone"
            )
        exits = temperature.shape[0]
    return threshold, temperature, exits


def leaf(value: Any, name: str, wanted: str) -> Array:
    """A float32 array of at most one axis; tracers are not looked into.

    Raises:
      ValueError: a NaN, or more axes.
    """
    if not isinstance(value, Tracer):
        value = np.asarray(value, np.float32)
        if np.isnan(value).any():
            raise ValueError(f"`{name}` must not hold a NaN, got {value.tolist()}")
    if value.ndim > 1:
        raise ValueError(
            f"`{name}` must be a scalar or have shape {wanted}, got shape {value.shape}"
        )
    return jnp.asarray(value, jnp.float32)


def at(values: Array, i: Any) -> Array:
    """The value for exit i, `[]` or `[b]` as i is; the last exit, which takes everyone, borrows the
    last threshold.
    """
    if values.ndim == 0:
        return values
    return jnp.take(values, i, mode="clip") if values.size else jnp.float32(jnp.nan)


def read_key(output: PyTree, key: str, read: Read) -> Array:
    """What `read` finds, or the output's entry `key`; a bare array is the logits.

    Raises:
      ValueError: there is no such entry.
    """
    if read is not None:
        return read(output)
    if isinstance(output, Mapping):
        if key in output:
            return output[key]
        has = f"has the keys {sorted(output)}"
    elif hasattr(output, "dtype"):
        if key == "logits":
            return output
        has = "is a bare array, the logits"
    else:
        has = f"is a {type(output).__name__}"
    raise ValueError(
        f"`criterion` reads output[{key!r}], and the output {has}; `read` may say where else to look"
    )


def read_logits(output: PyTree, read: Read) -> Array:
    """Logits `[b, C]`, or `[b, ..., C]` of a row with an answer at each of its places.

    Raises:
      ValueError: none there, or of another shape.
    """
    logits = read_key(output, "logits", read)
    if logits.ndim < 2:
        raise ValueError(
            f"`criterion` reads logits of shape [b, C] or [b, ..., C], got shape {logits.shape}"
        )
    return logits


def beside(values: Array, like: Array) -> Array:
    """`values`, `[]` or `[b]`, with as many axes as `like` `[b, ...]`."""
    return (
        values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values
    )


def at_every_place(passes: Array) -> Array:
    """A row leaves where each of its places would: bool `[b, ...]` to `[b]`."""
    return passes.all(axis=tuple(range(1, passes.ndim)))


def read_per_row(output: PyTree, key: str, read: Read) -> Array:
    """One float32 number a row, `[b]`.

    Raises:
      ValueError: none there, or of another shape.
    """
    values = read_key(output, key, read)
    if values.ndim != 1:
        raise ValueError(
            f"`criterion` reads output[{key!r}] of shape [b], got shape {values.shape}"
        )
    return values.astype(jnp.float32)


def no_memory(batch: int) -> tuple:
    """The memory of a rule that has none."""
    return ()
