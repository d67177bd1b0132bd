"""Checks of the arguments of `decode`; values are checked on the host if they are concrete."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynexit.core.shapes import Array, Float, Int
from dynexit.layers.inputs import check_tokens


def checked_prompts(
    prompts: Any, lengths: Any, vocabulary: int
) -> tuple[Int[Array, "B P"], Int[Array, "B"]]:
    """Checks prompts and their lengths.

    Args:
      prompts: integers `[B, P]` in 0..V-1 within the lengths.
      lengths: integers `[B]` in 1..P, or None for P.
      vocabulary: V.

    Returns:
      Prompts int32 `[B, P]` and lengths int32 `[B]`.

    Raises:
      ValueError: wrong shapes or types, no prompt or an empty one, a token or a length out of
        range.
    """
    check_tokens(prompts, "prompts")
    rows, length = jnp.shape(prompts)
    if not rows or not length:
        raise ValueError(
            "`prompts` must have at least one row of at least one token, "
            f"got shape {[rows, length]}"
        )
    lengths = np.full(rows, length, np.int32) if lengths is None else lengths
    if jnp.shape(lengths) != (rows,) or not jnp.issubdtype(jnp.result_type(lengths), jnp.integer):
        raise ValueError(
            f"`lengths` must be integers [{rows}], "
            f"got {jnp.result_type(lengths)}{list(jnp.shape(lengths))}"
        )
    if not isinstance(lengths, Tracer):
        values = np.asarray(lengths)
        if ((values < 1) | (values > length)).any():
            raise ValueError(f"`lengths` must lie in 1..{length}, got {values.tolist()}")
        if not isinstance(prompts, Tracer):
            tokens = np.asarray(prompts)[np.arange(length)[None] < values[:, None]]
            if ((tokens < 0) | (tokens >= vocabulary)).any():
                raise ValueError(
                    f"`prompts` must contain tokens in 0..{vocabulary - 1}, "
                    f"got {tokens.min()}..{tokens.max()}"
                )
    return jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths, jnp.int32)


def checked_stop(stop: Any, vocabulary: int) -> int | None:
    """Checks the stop token.

    Args:
      stop: a concrete integer in 0..V-1, or None.
      vocabulary: V.

    Returns:
      The token as a Python integer, or None.

    Raises:
      TypeError: `stop` is not an integer scalar, or is traced.
      ValueError: `stop` is out of range.
    """
    if stop is None:
        return None
    if (
        isinstance(stop, (bool, Tracer))
        or jnp.ndim(stop)
        or not jnp.issubdtype(jnp.result_type(stop), jnp.integer)
    ):
        raise TypeError(f"`stop` must be a concrete integer, one token, got {stop!r}")
    if not 0 <= int(stop) < vocabulary:
        raise ValueError(f"`stop` must be a token in 0..{vocabulary - 1}, got {int(stop)}")
    return int(stop)


def checked_sampling(keys: Any, temperature: Any, rows: int) -> Float[Array, ""]:
    """Checks the keys and the temperature.

    Args:
      keys: typed random keys `[B]`, or None.
      temperature: a scalar above 0; may be traced.
      rows: B.

    Returns:
      The temperature, float32 `[]`.

    Raises:
      TypeError: `keys` are not typed random keys.
      ValueError: `keys` have another shape, or `temperature` is not a scalar or not above 0.
    """
    if keys is not None:
        if not isinstance(keys, jax.Array) or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
            raise TypeError(f"`keys` must be an array of jax.random.key, got {type(keys).__name__}")
        if keys.shape != (rows,):
            raise ValueError(
                f"`keys` must have shape [{rows}], one per row, got {list(keys.shape)}"
            )
    if jnp.ndim(temperature):
        raise ValueError(
            f"`temperature` must be a scalar, got shape {list(jnp.shape(temperature))}"
        )
    if not isinstance(temperature, Tracer) and not float(np.asarray(temperature)) > 0:
        raise ValueError(
            f"`temperature` must be above 0, got {temperature}; omit `keys` for greedy decoding"
        )
    return jnp.asarray(temperature, jnp.float32)
