"""Halting logits of a recurrent state, as PALBERT reads them: from the state now and the one
before, through a few tanh layers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

READS = ("state", "concat", "diff")


def halting_logit(
    h, previous, *, reads: str = "state", layers: int = 0, detach: bool = False, bias: float = 0.0
):
    """Logit of the halting probability, w tanh(.. tanh(W_1 u + b_1) ..) + b, its parameters those
    of the compact module around it.

    Args:
      h: h_n, `[b, D]`.
      previous: h_{n-1}, `[b, D]`; not read by "state".
      reads: u is h_n ("state"), `[h_n; h_{n-1}]` ("concat") or h_n - h_{n-1} ("diff").
      layers: tanh layers of u's width before the last; 3 in PALBERT, whose "1" is none.
      detach: whether no gradient goes from here into h.
      bias: where the logit's bias begins.

    Returns:
      `[b]`, in the type of h.

    Source: Balagansky and Gavrilov 2022, PALBERT, section 3; the released code has dropout before
      the last layer, this one
    has none.
    """
    u = {
        "state": lambda: h,
        "concat": lambda: jnp.concatenate([h, previous], axis=-1),
        "diff": lambda: h - previous,
    }[reads]()
    u = jax.lax.stop_gradient(u) if detach else u
    for k in range(layers):
        u = nn.tanh(nn.Dense(u.shape[-1], dtype=h.dtype, name=f"halt_hidden{k}")(u))
    return nn.Dense(1, dtype=h.dtype, bias_init=nn.initializers.constant(bias), name="halt")(u)[
        :, 0
    ]
