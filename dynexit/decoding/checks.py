"""Checks of what `decode` is given. Concrete values are looked at on the host, so that it may
itself be traced.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynexit.core.types import Array
from dynexit.models.recurrent.recurrent_network import check_tokens


def checked_prompts(prompts: Any, lengths: Any, vocabulary: int) -> tuple[Array, Array]:
    """Prompts `[B, P]` and how much of each counts, `[B]`; int32 both.

    Raises:
      ValueError: other shapes or types, no prompt or an empty one, a token that is none, a length
        out of range.
    """
    check_tokens(prompts, "prompts")
    rows, length = jnp.shape(prompts)
    if not rows or not length:
        raise ValueError(
            f"`prompts` must hold at least one row of at least one token, got shape {[rows, length]}"
        )
    lengths = np.full(rows, length, np.int32) if lengths is None else lengths
    if jnp.shape(lengths) != (rows,) or not jnp.issubdtype(jnp.result_type(lengths), jnp.integer):
        raise ValueError(
            f"`lengths` must be integers [{rows}], got {jnp.result_type(lengths)}{list(jnp.shape(lengths))}"
        )
    if not isinstance(lengths, Tracer):
        told = np.asarray(lengths)
        if ((told < 1) | (told > length)).any():
            raise ValueError(f"`lengths` must lie in 1..{length}, got {told.tolist()}")
        if not isinstance(prompts, Tracer):
            tokens = np.asarray(prompts)[np.arange(length)[None] < told[:, None]]
            if ((tokens < 0) | (tokens >= vocabulary)).any():
                raise ValueError(
                    f"`prompts` must hold tokens in 0..{vocabulary - 1}, got {tokens.min()}..{tokens.max()}"
                )
    return jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths, jnp.int32)


def checked_stop(stop: Any, vocabulary: int) -> int | None:
    """A token as a Python integer, or None.

    Raises:
      TypeError, ValueError: something else.
    """
    if stop is None:
        return None
    if (
        isinstance(stop, (bool, Tracer))
        or jnp.ndim(stop)
        or not jnp.issubdtype(jnp.result_type(stop), jnp.integer)
    ):
        raise TypeError(f"`stop` must be one token, an integer that is not traced, got {stop!r}")
    if not 0 <= int(stop) < vocabulary:
        raise ValueError(f"`stop` must be a token in 0..{vocabulary - 1}, got {int(stop)}")
    return int(stop)


def checked_sampling(keys: Any, temperature: Any, rows: int) -> Array:
    """The temperature, float32 `[]`, once the keys are those of `rows` rows.

    Raises:
      TypeError, ValueError: keys that are none or of another number, a temperature that is no
        scalar or not above 0.
    """
    if keys is not None:
        if not isinstance(keys, jax.Array) or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
            raise TypeError(f"`keys` must be an array of jax.random.key, got {type(keys).__name__}")
        if keys.shape != (rows,):
            raise ValueError(f"`keys` must have shape [{rows}], one a row, got {list(keys.shape)}")
    if jnp.ndim(temperature):
        raise ValueError(
            f"`temperature` must be a scalar, got shape {list(jnp.shape(temperature))}"
        )
    if not isinstance(temperature, Tracer) and not float(np.asarray(temperature)) > 0:
        raise ValueError(
            f"`temperature` must be above 0, got {temperature}; without `keys` the likeliest token is taken"
        )
    return jnp.asarray(temperature, jnp.float32)
