"""The exit head that most models share."""

from typing import Literal

import flax.linen as nn

from dynexit.core.shapes import Array, Bool, Float
from dynexit.layers.dense import Dense
from dynexit.layers.norms import LayerNorm
from dynexit.layers.pooling import mean_over_places


class LogitsHead(nn.Module):
    """Logits of x: pooling, normalisation and an affine map, each of the first two optional.

    Attributes:
      classes: C.
      norm: whether there is a layer norm.
      pool: "mean" over the places of a row, or "none".

    Example:
      >>> import jax, jax.numpy as jnp
      >>> head = LogitsHead(3, pool="mean")
      >>> head.init_with_output(jax.random.key(0), jnp.ones((2, 5, 4)))[0].shape
      (2, 3)
    """

    classes: int
    norm: bool = True
    pool: Literal["none", "mean"] = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *places D"], real: Bool[Array, "b *places"] | None = None
    ) -> Float[Array, "b ... C"]:
        """`real`, bool `[b, ...]`, is False at padded places, which the mean excludes."""
        x = mean_over_places(x, real) if self.pool == "mean" else x
        x = LayerNorm(name="norm")(x) if self.norm else x
        return Dense(self.classes, name="logits")(x)
