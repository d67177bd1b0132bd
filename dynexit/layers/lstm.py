"""The LSTM cell of flax with an axis for its gates."""

from typing import Any, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.recurrent import DenseParams
from jax import lax

from dynexit.core.shapes import Array, Float

Carry: TypeAlias = tuple[Float[Array, "b D"], Float[Array, "b D"]]


class LSTMCell(nn.OptimizedLSTMCell):
    """`nn.OptimizedLSTMCell` whose products are `[b, 4, D]` where flax has `[b, 4 D]`.

    Parameters and values are the same. The units have an axis of their own, so that they can be
    split over devices without an exchange of the gates.

    Example:
      >>> import jax
      >>> cell = LSTMCell(4)
      >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
      >>> (c, h), y = cell.init_with_output(jax.random.key(0), carry, jnp.ones((2, 3)))[0]
      >>> y.shape, bool((y == h).all())
      ((2, 4), True)

    Source: Hochreiter and Schmidhuber 1997; flax.
    """

    @nn.compact
    def __call__(
        self, carry: Carry, inputs: Float[Array, "b C"]
    ) -> tuple[Carry, Float[Array, "b D"]]:
        c, h = carry
        gates = self._product("h", h, self.recurrent_kernel_init, True)
        gates = gates + self._product("i", inputs, self.kernel_init, False)
        i, f, o = (self.gate_fn(gates[:, k]) for k in (0, 1, 3))
        c = f * c + i * self.activation_fn(gates[:, 2])
        h = o * self.activation_fn(c)
        return (c, h), h

    def _product(self, name: str, x: Array, draw: Any, bias: bool) -> Float[Array, "b 4 D"]:
        parts = [
            DenseParams(
                self.features,
                bias,
                self.param_dtype,
                kernel_init=draw,
                bias_init=self.bias_init,
                name=f"{name}{gate}",
            )(x)
            for gate in "ifgo"
        ]
        kernel = jnp.stack([kernel for kernel, _ in parts], axis=1).astype(x.dtype)
        product = lax.dot_general(x, kernel, (((1,), (0,)), ((), ())))
        return product + jnp.stack([b for _, b in parts]).astype(x.dtype)[None] if bias else product
