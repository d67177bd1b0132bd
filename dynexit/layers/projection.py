"""Linear maps of language models, in the layout of checkpoints or in that of decoding."""

import jax.numpy as jnp

from dynexit.core.shapes import Array, Float, PyTree


def project(x: Float[Array, "*rows D"], p: PyTree) -> Float[Array, "*rows F"]:
    """x W^T + b in the type of x.

    Args:
      x: `[..., D]`.
      p: a dict of "weight" `[F, D]`, as checkpoints store it, or "transposed" `[D, F]`, whose
        product with a few rows is faster on a CPU; and optionally "bias" `[F]`.

    Returns:
      `[..., F]`.

    Example:
      >>> project(jnp.array([1.0, 2.0]), {"weight": jnp.array([[3.0, 4.0]])}).tolist()
      [11.0]
    """
    given = "transposed" if "transposed" in p else "weight"
    matrix = p[given].astype(x.dtype)
    y = jnp.einsum(
        "rd,df->rf" if given == "transposed" else "rd,fd->rf", x.reshape(-1, x.shape[-1]), matrix
    )
    y = y.reshape(*x.shape[:-1], -1)
    if "bias" not in p:
        return y
    return y + jnp.expand_dims(p["bias"].astype(x.dtype), range(y.ndim - 1))


def transposed(p: PyTree) -> PyTree:
    """Parameters of `project` with "weight" `[F, D]` replaced by "transposed"; vectors are kept.

    Example:
      >>> transposed({"weight": jnp.ones((2, 3))})["transposed"].shape
      (3, 2)
    """
    if jnp.ndim(p["weight"]) < 2:
        return p
    rest = {name: value for name, value in p.items() if name != "weight"}
    return {"transposed": jnp.transpose(p["weight"]), **rest}
