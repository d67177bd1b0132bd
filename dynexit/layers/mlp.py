"""The two-layer network within a block."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn

from dynexit.core.shapes import Array, Float
from dynexit.layers.dense import Dense


class MLP(nn.Module):
    """down(f(up(x))), or with a gate down(f(gate(x)) * up(x)), over the last axis of x.

    Attributes:
      hidden: width of the inner layer.
      activation: f.
      gate: "none"; "separate" kernels "gate" and "up"; or "fused", one kernel "gate_up"
        `[D, 2, hidden]`.
      bias: whether the layers have biases.
      kernel_init: initialiser of the first kernels.
      out_init: initialiser of the kernel "down".

    Example:
      >>> import jax, jax.numpy as jnp
      >>> swiglu = MLP(16, nn.silu, gate="fused", bias=False)
      >>> params = swiglu.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
      >>> params["gate_up"]["kernel"].shape, params["down"]["kernel"].shape
      ((4, 2, 16), (16, 4))

    Source: Shazeer 2020, arXiv 2002.05202, for the gates.
    """

    hidden: int
    activation: Callable[[Array], Array] = nn.gelu
    gate: Literal["none", "separate", "fused"] = "none"
    bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    out_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        layer = lambda features, name: Dense(
            features, bias=self.bias, kernel_init=self.kernel_init, name=name
        )
        if self.gate == "fused":
            both = layer((2, self.hidden), "gate_up")(x)
            inner = self.activation(both[..., 0, :]) * both[..., 1, :]
        elif self.gate == "separate":
            inner = self.activation(layer(self.hidden, "gate")(x)) * layer(self.hidden, "up")(x)
        else:
            inner = self.activation(layer(self.hidden, "up")(x))
        down = Dense(x.shape[-1], bias=self.bias, kernel_init=self.out_init, name="down")
        return down(inner)


def swiglu_width(width: int, multiple: int = 8) -> int:
    """8/3 of `width`, rounded up to a multiple: as many weights with a gate as 4 without one.

    Example:
      >>> swiglu_width(32)
      88
    """
    return -(-8 * width // (3 * multiple)) * multiple
