"""A convolution whose gradients are convolutions that XLA has quick code for, also inside a loop."""

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.types import Array

_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """Stride 1, zeros beyond the edge, as many places as before: y[p] = sum_d x[p + d] kernel[d].

    XLA's own gradient of a convolution has no quick path inside a loop on a CPU. Here both
    gradients are written as forward
    convolutions: of the output's gradient with the mirrored kernel, and of the input with the
      output's gradient, channels and
    rows changing places. docs/benchmarks.md ("Convolutions in a loop") has the ratio.

    Args:
      x: `[b, L, C]` or `[b, H, W, C]`.
      kernel: `[w, C, D]` or `[w, w, C, D]`, w odd.

    Returns:
      `[b, L, D]` or `[b, H, W, D]`.

    Example:
      >>> convolve(jnp.arange(4.0).reshape(1, 4, 1), jnp.ones((3, 1, 1)))[0, :, 0].tolist()
      [1.0, 3.0, 6.0, 5.0]
    """
    return _convolve(x, kernel)


def _convolve(x: Array, kernel: Array) -> Array:
    layout = _LAYOUTS[x.ndim - 2]
    return lax.conv_general_dilated(
        x, kernel, (1,) * (x.ndim - 2), "SAME", dimension_numbers=layout
    )


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    places = tuple(range(1, x.ndim - 1))
    dx = _convolve(dy, jnp.swapaxes(jnp.flip(kernel, axis=tuple(range(x.ndim - 2))), -1, -2))
    margins = [(w // 2, w // 2) for w in kernel.shape[:-2]]
    images, window = x.transpose(x.ndim - 1, *places, 0), dy.transpose(*places, 0, dy.ndim - 1)
    layout = _LAYOUTS[x.ndim - 2]
    dk = lax.conv_general_dilated(
        images, window, (1,) * len(places), margins, dimension_numbers=layout
    )  # [C, w, (w,) D]
    return dx, jnp.moveaxis(dk, 0, -2)


convolve.defvjp(_forward, _backward)
