"""Recurrent depth (Huginn): a prelude reads the tokens, one core is iterated on a latent state, a
coda reads the state.
"""

from dynexit.core.checks import positive_integer
from dynexit.core.types import Model
from dynexit.engine.deferred import deferred_readout
from dynexit.engine.steps import tied_step
from dynexit.models.recurrent.recurrent_network import Network, Part


def recurrent_depth(
    vocabulary: int,
    *,
    width: int,
    heads: int,
    steps: int,
    prelude: int = 1,
    core: int = 1,
    coda: int = 1,
    mean_steps: int = 8,
) -> Model:
    """A decoder whose middle is iterated: any number of iterations at test time, with the weights
    of one.

    e = prelude(gamma Emb(x)); s_0 = 0; s_{i+1} = core(A [s_i; e]); logits = Emb n(coda(n(s))),
    gamma = sqrt(D), one norm n.

    Args:
      vocabulary: V.
      width: D, a multiple of `heads`, and even a head.
      heads: attention heads.
      steps: N, the most iterations of the core.
      prelude, core, coda: blocks l_P, l_R and l_C.
      mean_steps: iterations expected in training, for the scale of the initial output projections
        alone.

    Returns:
      A weight-tied `Model`: inputs int32 `[B, L]`, or `{"tokens": [B, L], "h": [B, L, D]}` with the
      state to begin with, for a warm start; outputs `{"logits": [E, B, L, V], "residual": [E, B,
      L]}`, the logits in the parameters' type and beside them
      ||s_i - s_{i-1}|| / ||s_i||. State: "input" (e), which no step changes, "h" (s) and "change", the residual. Without a warm
      start s is 0; training may start it elsewhere (`dx.methods.recurrent_depth`).

    Raises:
      ValueError, TypeError: a number below 1, `width` not a multiple of 2 x `heads`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = recurrent_depth(50, width=16, heads=2, steps=4)
      >>> params = model.init(jax.random.key(0))
      >>> model.embed(params, jnp.zeros((3, 7), jnp.int32))["h"].shape
      (3, 7, 16)

    Source: Geiping et al. 2025, arXiv 2502.05171, and its released code: sandwich norm, biases on
      queries and keys alone, tied
    embedding, weights N(0, 2 / (5 D)) and output projections smaller by sqrt(2 l_eff). Deviations:
    s_0 = 0 at inference, so that answers are repeatable, where the release draws it, or begins with
    the state of the token before ("h" does that).
    """
    sizes = dict(
        vocabulary=vocabulary,
        width=width,
        heads=heads,
        steps=steps,
        prelude=prelude,
        core=core,
        coda=coda,
    )
    for name, value in (sizes | {"mean_steps": mean_steps}).items():
        positive_integer(value, name)
    if width % (2 * heads):
        raise ValueError(f"`width` must be a multiple of 2 x `heads` = {2 * heads}, got {width}")
    network = Network(vocabulary, width, heads, prelude, core, coda, mean_steps)
    names = tuple(f"step{i:02d}" for i in range(steps))
    iterate, residual, head = (Part(network, name) for name in ("iterate", "residual", "head"))
    step = lambda params: deferred_readout(tied_step(iterate, residual, params), head, params)
    return Model(network.init, network.embed, step, steps, names, decoder=network)
