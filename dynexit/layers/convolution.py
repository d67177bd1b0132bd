"""Convolutions, also with gradients that are fast inside a loop."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.shapes import AnyArray, Array, Bool, Float, Shaped

_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


@jax.custom_vjp
def convolve(
    x: Float[AnyArray, "b *places C"], kernel: Float[AnyArray, "*window C D"]
) -> Float[Array, "b *places D"]:
    """y[p] = sum_d x[p + d] kernel[d] with stride 1, zeros beyond the edge and the size of x.

    XLA compiles its own gradient of a convolution to slow code inside a loop on a CPU. Here both
    gradients are forward convolutions: of the gradient of y with the mirrored kernel, and of x
    with the gradient of y, where channels and rows are exchanged. docs/benchmarks.md
    ("Convolutions in a loop") has the ratio. Gradients are reverse mode only.

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


def _convolve(
    x: Shaped[AnyArray, "..."], kernel: Shaped[AnyArray, "..."], stride: int = 1
) -> Array:
    strides, layout = (stride,) * (x.ndim - 2), _LAYOUTS[x.ndim - 2]
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)


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


class Convolution(nn.Module):
    """A convolution without bias over all places, zeros beyond the edge, in the type of x.

    Attributes:
      features: output channels.
      window: w, odd.
      stride: places from one output to the next.
      in_loop: use `convolve`, whose gradients are fast inside a loop on a CPU; needs stride 1.
      kernel_init: initialiser of the kernel `[w, (w,) C, features]`.

    Example:
      >>> convolution = Convolution(8, stride=2)
      >>> convolution.init_with_output(jax.random.key(0), jnp.ones((1, 6, 6, 3)))[0].shape
      (1, 3, 3, 8)
    """

    features: int
    window: int = 3
    stride: int = 1
    in_loop: bool = False
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "b *places C"], open: Bool[Array, "b *places"] | None = None
    ) -> Float[Array, "b ... D"]:
        """The output is zero where `open`, bool `[b, ...]`, is False."""
        shape = (*(self.window,) * (x.ndim - 2), x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(x.dtype)
        y = convolve(x, kernel) if self.in_loop else _convolve(x, kernel, self.stride)
        return y if open is None else jnp.where(open[..., None], y, 0)
