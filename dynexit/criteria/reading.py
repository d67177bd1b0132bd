"""Arguments of exit rules as leaves of a pytree, and what a rule reads of an output."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, Num, PyTree, Rows, Shaped

Read: TypeAlias = Callable[[PyTree], Shaped[Array, "b ..."]] | None
# One number, or one for each exit
PerExit: TypeAlias = float | np.generic | Sequence[float] | Num[AnyArray, "..."]


def threshold_leaf(
    value: PerExit, name: str = "threshold", low: float = -np.inf, high: float = np.inf
) -> Float[Array, "..."]:
    """A threshold as a float32 array, scalar or `[E-1]`.

    Raises:
      ValueError: a finite threshold outside low..high, which no score or every score passes;
        infinities are allowed, and tracers are not checked.
    """
    found = leaf(value, name, "[E-1]")
    if not isinstance(value, Tracer):
        given = np.asarray(value, np.float32)
        if (np.isfinite(given) & ((given < np.float32(low)) | (given > np.float32(high)))).any():
            within = f"at least {low:g}" if high == np.inf else f"at most {high:g}"
            raise ValueError(
                f"`{name}` must be {within}, or infinite for a row that never exits early, got "
                f"{given.tolist()}"
            )
    return found


def exits_of(threshold: Float[Array, "..."]) -> int | None:
    """The number of exits that a threshold is meant for, None for any."""
    return threshold.shape[0] + 1 if threshold.ndim else None


def threshold_and_temperature(
    threshold: PerExit, temperature: PerExit, low: float = -np.inf, high: float = np.inf
) -> tuple[Float[Array, "..."], Float[Array, "..."], int | None]:
    """Both as float32 arrays, and the number of exits that they are meant for.

    Raises:
      ValueError: a threshold outside low..high, a temperature not above 0, or the two are meant for
        different numbers of exits.
    """
    threshold = threshold_leaf(threshold, low=low, high=high)
    temperature = leaf(temperature, "temperature", "[E]")
    if not isinstance(temperature, Tracer) and not (np.asarray(temperature) > 0).all():
        raise ValueError(f"`temperature` must be above 0, got {np.asarray(temperature).tolist()}")
    exits = exits_of(threshold)
    if temperature.ndim:
        if exits not in (None, temperature.shape[0]):
            raise ValueError(
                f"`temperature` has shape {temperature.shape}, for {temperature.shape[0]} exits, "
                f"and `threshold` has shape {threshold.shape}, for {exits}: the last exit needs "
                "no threshold"
            )
        exits = temperature.shape[0]
    return threshold, temperature, exits


def leaf(value: PerExit, name: str, wanted: str) -> Float[Array, "..."]:
    """A float32 array of at most one axis; tracers are not checked.

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


def at(values: Float[Array, "..."], i: Int[Array, "..."]) -> Float[Array, "..."]:
    """The value for exit i, `[]` or `[b]` as i is; the last exit uses the last threshold."""
    if values.ndim == 0:
        return values
    return jnp.take(values, i, mode="clip") if values.size else jnp.float32(jnp.nan)


def read_key(output: Rows, key: str, read: Read) -> Shaped[Array, "B ..."]:
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
        f"`criterion` reads output[{key!r}], and the output {has}; `read` may say where else to "
        "look"
    )


def read_logits(output: Rows, read: Read) -> Num[Array, "B ... C"]:
    """Logits `[b, C]`, or `[b, ..., C]` of a row with an answer at each of its places.

    Raises:
      ValueError: none there, or of another shape, or of one class.
    """
    logits = read_key(output, "logits", read)
    if logits.ndim < 2:
        raise ValueError(
            f"`criterion` reads logits of shape [b, C] or [b, ..., C], got shape {logits.shape}"
        )
    if logits.shape[-1] < 2:
        raise ValueError(
            f"`logits` must have at least 2 classes on the last axis, got shape {logits.shape}; "
            "for a head of one logit z let `read` give the two logits (0, z)"
        )
    return logits


def beside(values: Shaped[Array, "..."], like: Shaped[Array, "b ..."]) -> Shaped[Array, "..."]:
    """`values`, `[]` or `[b]`, with as many axes as `like` `[b, ...]`."""
    return (
        values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values
    )


def lowest(values: Float[Array, "B ..."], output: Rows) -> Float[Array, "B"]:
    """The smallest value over a row's places, `[b, ...]` to `[b]`.

    A rule that exits above a threshold holds at every place where it holds at the smallest. See
    `mask_of` for padded places.
    """
    return _over_places(jnp.min, values, mask_of(output, values), jnp.finfo(jnp.float32).max)


def highest(values: Float[Array, "B ..."], output: Rows) -> Float[Array, "B"]:
    """The largest value over a row's places, `[b, ...]` to `[b]`.

    It is for rules that exit below a threshold.
    """
    return _over_places(jnp.max, values, mask_of(output, values), -jnp.finfo(jnp.float32).max)


def mask_of(output: Rows, values: Shaped[Array, "B ..."]) -> Bool[Array, "B ..."] | None:
    """The output's entry "mask" as bool with the axes of `values` `[b, ...]`.

    It is false at padded places, which no rule considers. None where there is no such entry or a
    row has no places.

    Raises:
      ValueError: a mask that is not bool, or whose shape does not begin that of `values`.
    """
    if not isinstance(output, Mapping) or "mask" not in output or values.ndim == 1:
        return None
    mask = output["mask"]
    if mask.dtype != jnp.bool_ or mask.ndim < 2 or mask.shape != values.shape[: mask.ndim]:
        raise ValueError(
            f"`output['mask']` must be bool with the leading axes of {list(values.shape)}, a row's "
            f"places, got {mask.dtype}{list(mask.shape)}"
        )
    return beside(mask, values)


def _over_places(
    reduce: Callable[..., Array], values: Array, mask: Array | None, initial: float | np.generic
) -> Array:
    places = tuple(range(1, values.ndim))
    if not places:
        return values
    considered = True if mask is None else jnp.broadcast_to(mask, values.shape)
    found = reduce(values, axis=places, where=considered, initial=initial)
    nan = (jnp.isnan(values) & considered).any(axis=places)  # not every device's maximum keeps it
    return jnp.where(nan, jnp.nan, found)


def read_per_row(output: Rows, key: str, read: Read) -> Float[Array, "B"]:
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
