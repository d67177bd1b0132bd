"""Linear maps with weights `[out, in]`, as checkpoints of language models store them."""

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.shapes import Array, Float, PyTree


def project(x: Float[Array, "*rows D"], p: PyTree) -> Float[Array, "*rows F"]:
    """x W^T + b in the type of x.

    On a CPU, two to four rows are multiplied one by one: XLA's product of a matrix and a vector
    is faster there than that of two matrices.

    Args:
      x: `[..., D]`.
      p: a dict of "weight" `[F, D]` and optionally "bias" `[F]`.

    Returns:
      `[..., F]`.

    Example:
      >>> project(jnp.array([1.0, 2.0]), {"weight": jnp.array([[3.0, 4.0]])}).tolist()
      [11.0]
    """
    weight = p["weight"].astype(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    product = lambda x: lax.dot_general(x, weight, (((1,), (1,)), ((), ())))
    if 1 < rows.shape[0] <= 4 and jax.default_backend() == "cpu":
        y = jnp.concatenate([product(rows[k : k + 1]) for k in range(rows.shape[0])])
    else:
        y = product(rows)
    y = y.reshape(*x.shape[:-1], -1)
    if "bias" not in p:
        return y
    return y + jnp.expand_dims(p["bias"].astype(x.dtype), range(y.ndim - 1))
