"""Linear maps of language models, in the layout of checkpoints or in those of decoding."""

import jax.numpy as jnp

from dynexit.core.shapes import Array, Float, PyTree
from dynexit.layers.panels import (
    LARGEST,
    WIDTH,
    in_panels,
    on_cpu,
    panels_are_fast,
    product_of_panels,
)


def project(x: Float[Array, "*rows D"], p: PyTree) -> Float[Array, "*rows F"]:
    """x W^T + b in the type of x.

    Args:
      x: `[..., D]`.
      p: a dict of the matrix and optionally "bias" `[F]`. The matrix is one of "weight" `[F, D]`,
        as checkpoints store it; "transposed" `[D, F]`; "panels" `[F // w, D, w]`, with
        "transposed" for the last F % w columns (`dynexit.layers.panels`).

    Returns:
      `[..., F]`.

    Example:
      >>> project(jnp.array([1.0, 2.0]), {"weight": jnp.array([[3.0, 4.0]])}).tolist()
      [11.0]
    """
    rows, parts = x.reshape(-1, x.shape[-1]), []
    if "panels" in p:
        parts.append(product_of_panels(rows, p["panels"]))
    if "transposed" in p:
        parts.append(rows @ p["transposed"].astype(x.dtype))
    if "weight" in p:
        parts.append(jnp.einsum("rd,fd->rf", rows, p["weight"].astype(x.dtype)))
    y = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
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


def for_decoding(p: PyTree, width: int = WIDTH) -> PyTree:
    """Parameters in panels where these are faster, else `transposed`.

    Panels are faster on CPUs of `panels_are_fast`, for a matrix of at most 2^18 entries. XLA
    multiplies a larger one by a single row on several cores, but panels on one.

    Args:
      p: with "weight" `[F, D]` or `[F]`.
      width: columns of a panel.

    Example:
      >>> matrix = {"weight": jnp.ones((32, 3))}
      >>> project(jnp.ones(3), for_decoding(matrix)).shape
      (32,)
    """
    weight = p["weight"]
    fast = weight.size <= LARGEST and on_cpu(weight) and panels_are_fast()
    return in_panels(p, width) if fast else transposed(p)
