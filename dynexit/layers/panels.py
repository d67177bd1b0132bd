"""Matrices in panels of a few columns: products of 2 to 64 rows that do not pack the matrix.

XLA's matrix product for CPUs copies the matrix into panels at every call, which takes longer than
the product of a few rows. Here the matrix is kept in panels.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynexit.core.shapes import Array, Float, PyTree
from dynexit.core.system import cores

WIDTH = 16
LARGEST = 2**18  # entries of a matrix for which the product of one row runs on one core anyway
ROWS = 64  # with more, packing costs less than it saves


def in_panels(p: PyTree, width: int = WIDTH) -> PyTree:
    """Parameters of `project` with "weight" replaced by "panels"; vectors are kept.

    panels[i, d, j] = weight[i w + j, d]

    XLA computes equal broadcasts once and writes them to memory, which is slow. So matrices that
    multiply one x should have panels of different widths, and no matrix should be used twice in one
    computation.

    Args:
      p: with "weight" `[F, D]` or `[F]`.
      width: w, columns of a panel. 8 to 32 are fast.

    Returns:
      "panels" `[F // w, D, w]` and, if w does not divide F, "transposed" `[D, F % w]`.

    Example:
      >>> {name: a.shape for name, a in in_panels({"weight": jnp.ones((40, 3))}).items()}
      {'panels': (2, 3, 16), 'transposed': (3, 8)}
    """
    weight = p["weight"]
    if jnp.ndim(weight) < 2:
        return p
    outputs, inputs = weight.shape
    whole = outputs // width * width
    found = {name: value for name, value in p.items() if name != "weight"}
    if whole:
        found["panels"] = weight[:whole].reshape(-1, width, inputs).transpose(0, 2, 1)
    if whole < outputs:
        found["transposed"] = jnp.transpose(weight[whole:])
    return found


def without_panels(params: PyTree) -> PyTree:
    """The same parameters with "transposed" in place of every "panels".

    Example:
      >>> params = {"up": in_panels({"weight": jnp.ones((40, 3))})}
      >>> without_panels(params)["up"]["transposed"].shape
      (3, 40)
    """
    if isinstance(params, list):
        return [without_panels(value) for value in params]
    if not isinstance(params, Mapping):
        return params
    params = {name: without_panels(value) for name, value in params.items()}
    if "panels" not in params:
        return params
    parts = [_joined(params.pop("panels"))]
    parts += [params["transposed"]] if "transposed" in params else []
    return {**params, "transposed": jnp.concatenate(parts, axis=1)}


def product_of_panels(x: Float[Array, "R D"], panels: Float[Array, "P D w"]) -> Float[Array, "R F"]:
    """The product of x and a matrix in panels, F = P w.

    y[r, i w + j] = sum over d of x[r, d] panels[i, d, j]

    It is a sum of products, for which XLA reads every panel once for all rows. One row is a product
    of a vector and each panel. With more than 64 rows the panels are joined to one matrix first.
    """
    if len(x) > ROWS:
        return x @ _joined(panels).astype(x.dtype)
    wide = jnp.float32 if x.dtype.itemsize < 4 else x.dtype
    rows, matrices = x.astype(wide), panels.astype(wide)
    if len(x) == 1:
        each = jnp.broadcast_to(rows, (len(panels), 1, x.shape[1]))
        y = jax.lax.dot_general(each, matrices, (((2,), (1,)), ((0,), (0,))))  # [P, 1, w]
    else:
        y = (rows[:, None, :, None] * matrices[None]).sum(2)  # [R, P, w]
    return y.astype(x.dtype).reshape(len(x), -1)


@functools.cache
def panels_are_fast() -> bool:
    """Whether XLA computes products of panels on this machine's CPU without writing broadcasts.

    A small program is compiled and looked at, not timed, so the answer is the same in every
    process. Such a product runs on one core: with more than three cores, packed products are
    faster.
    """
    if cores() > 3:
        return False
    rows, inputs, outputs = 8, 128, 512
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    shapes = [shape(outputs // w, inputs, w) for w in (WIDTH, 2 * WIDTH)]
    gated = lambda x, gate, up: jax.nn.silu(product_of_panels(x, gate)) * product_of_panels(x, up)
    with jax.default_device(jax.devices("cpu")[0]):
        program = jax.jit(gated).lower(shape(rows, inputs), *shapes).compile()
    memory: Any = program.memory_analysis()
    small = 16 * rows * outputs * 4  # a broadcast takes 128 times a result
    return "ynn_fusion" in (program.as_text() or "") and memory.temp_size_in_bytes < small


def on_cpu(array: Any) -> bool:
    """Whether an array is on a CPU, or will be; False while it is traced, for any device."""
    if isinstance(array, np.ndarray):
        return jax.default_backend() == "cpu"
    if not isinstance(array, jax.Array) or isinstance(array, Tracer):
        return False
    return next(iter(array.devices())).platform == "cpu"


def _joined(panels: Float[Array, "P D w"]) -> Float[Array, "D F"]:
    return panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)
