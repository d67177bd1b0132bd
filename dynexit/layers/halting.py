"""Halting logits of a state."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Bool, Float
from dynexit.layers.dense import Dense
from dynexit.layers.pooling import mean_over_places


class HaltingHead(nn.Module):
    """The logit of the halting probability, w tanh(... tanh(W_1 u + b_1) ...) + b.

    Attributes:
      reads: u is the state h_n ("state"), `[h_n; h_{n-1}]` ("concat") or h_n - h_{n-1} ("diff").
      layers: tanh layers of the width of u before the last layer; 3 in PALBERT.
      detach: whether no gradient passes from here into the states.
      bias: initial value of b; 0 is a probability of 1/2.
      pool: "mean" for one logit a row, of the mean over its places; "none" for one a place.
      kernel_init: initialiser of w.

    Example:
      >>> head = HaltingHead(reads="diff", bias=-1.0)
      >>> h = jnp.ones((2, 4))
      >>> head.init_with_output(jax.random.key(0), h, h)[0].tolist()
      [-1.0, -1.0]

    Source: Graves 2016, arXiv 1603.08983; Balagansky and Gavrilov 2022, PALBERT, section 3, for
    `reads` and `layers`. The released code has dropout before the last layer, this one has none.
    """

    reads: Literal["state", "concat", "diff"] = "state"
    layers: int = 0
    detach: bool = False
    bias: float = 0.0
    pool: Literal["none", "mean"] = "none"
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b *places D"],
        previous: Float[Array, "b *places D"] | None = None,
        real: Bool[Array, "b *places"] | None = None,
    ) -> Float[Array, "b ..."]:
        """The logits.

        Args:
          h: h_n, `[b, ..., D]`.
          previous: h_{n-1}, of the same shape; not read by "state".
          real: bool `[b, ...]`, False at padded places, which the mean excludes.

        Returns:
          `[b, ...]`, or `[b]` with pooling; in the type of h.
        """
        u = h
        if self.reads == "concat":
            u = jnp.concatenate([h, jnp.asarray(previous)], axis=-1)
        elif self.reads == "diff":
            u = h - jnp.asarray(previous)
        u = jax.lax.stop_gradient(u) if self.detach else u
        u = mean_over_places(u, real) if self.pool == "mean" else u
        for k in range(self.layers):
            u = nn.tanh(Dense(u.shape[-1], name=f"halt_hidden{k}")(u))
        last = Dense(
            1,
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.constant(self.bias),
            name="halt",
        )
        return last(u)[..., 0]
