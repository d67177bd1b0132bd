"""Continuous thought machine: neurons that read their own history, and answers read from how pairs
of them move together.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array, Model, PyTree
from dynexit.engine.steps import tied_step
from dynexit.layers.parts import Apply, Norm, attend, check_input, initial
from dynexit.models.recurrent.synchronisation import (
    Pairing,
    Pairs,
    accumulated,
    decays_in_range,
    neuron_pairs,
    synchronisation,
)


def uniform(bound: float):
    """An initializer, uniform in -bound..bound."""
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


class Embed(nn.Module):
    """Inputs `[b, L, channels]` to keys and values, both `[b, L, heads, features]`; where a place
    is, a learned position says.
    """

    features: int
    heads: int

    @nn.compact
    def __call__(self, x):
        e = nn.Dense(self.features, dtype=x.dtype, name="input")(x)
        where = self.param("position_embedding", nn.initializers.normal(1.0), e.shape[1:])
        e = Norm(name="norm")(e + where.astype(e.dtype)[None])
        both = nn.Dense(2 * self.features, dtype=x.dtype, name="key_value")(e)
        split = lambda t: t.reshape(*t.shape[:2], self.heads, self.features // self.heads)
        return tuple(map(split, jnp.split(both, 2, axis=-1)))


class NeuronModels(nn.Module):
    """An MLP of its own for each neuron, from its history to its activation: `[b, D, M]` to `[b,
    D]`, both layers with a GLU.
    """

    hidden: int

    @nn.compact
    def __call__(self, history):
        x = history.swapaxes(
            0, 1
        )  # neurons first: the products of matrices then need no reordering in between
        for name, features in (("first", 2 * self.hidden), ("second", 2)):
            neurons, _, inputs = x.shape
            draw = uniform((inputs + features) ** -0.5)
            kernel = self.param(f"{name}_kernel", draw, (neurons, inputs, features)).astype(x.dtype)
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (neurons, features)).astype(
                x.dtype
            )
            x = nn.glu(jnp.einsum("nbi,nio->nbo", x, kernel) + bias[:, None])
        return x[..., 0].T


class Tick(nn.Module):
    """One tick: where to look, the synapses between neurons, each neuron's own model."""

    hidden: int
    action: Pairs
    out: Pairs

    @nn.compact
    def __call__(self, state):
        z, keys, values = state["z"], state["keys"], state["values"]
        decay = lambda name, pairs: self.param(
            f"{name}_decay", nn.initializers.zeros, (len(pairs[0]),)
        )
        state = state | accumulated(state, "action", z, self.action, decay("action", self.action))
        heads, size = keys.shape[2:]
        query = nn.Dense(heads * size, dtype=z.dtype, name="query")(
            synchronisation(state, "action").astype(z.dtype)
        )
        seen = attend(query.reshape(-1, 1, heads, size), keys, values)[:, 0]
        mixed = nn.Dense(2 * z.shape[1], dtype=z.dtype, name="synapses")(
            jnp.concatenate([seen, z], axis=-1)
        )
        before = Norm(name="norm")(nn.glu(mixed))
        history = jnp.concatenate([state["history"][:, :, 1:], before[:, :, None]], axis=-1)
        z = NeuronModels(self.hidden, name="neurons")(history)
        new = accumulated(state, "out", z, self.out, decay("out", self.out))
        return state | new | {"z": z, "history": history}


class Head(nn.Module):
    """Logits `[b, C]` or `[b, P, C]` from the synchronisation of the output pairs."""

    classes: int
    answers: int | None

    @nn.compact
    def __call__(self, state):
        s = synchronisation(state, "out").astype(state["z"].dtype)
        logits = nn.Dense((self.answers or 1) * self.classes, dtype=s.dtype, name="logits")(s)
        return logits if self.answers is None else logits.reshape(-1, self.answers, self.classes)


def start(first: PyTree, keys: Array, values: Array, looked: Pairs, told: Pairs) -> PyTree:
    """The state before the first tick; the answer's synchronisation begins with the first z, the
    query's with nothing.
    """
    b, z = keys.shape[0], first["z_embedding"].astype(keys.dtype)
    repeat = lambda a: jnp.broadcast_to(a[None], (b, *a.shape))
    state = {
        "keys": keys,
        "values": values,
        "z": repeat(z),
        "history": repeat(first["history_embedding"].astype(keys.dtype)),
    }
    nothing = lambda name, pairs: {
        f"{name}_{part}": jnp.zeros((b, len(pairs[0]))) for part in ("alpha", "beta")
    }
    begun = accumulated(nothing("out", told), "out", state["z"], told, jnp.zeros(len(told[0])))
    return state | nothing("action", looked) | begun


def ctm(
    places: int,
    channels: int,
    classes: int,
    *,
    width: int,
    ticks: int,
    answers: int | None = None,
    memory: int = 8,
    hidden: int = 4,
    features: int = 32,
    heads: int = 2,
    action: int = 32,
    out: int = 32,
    pairing: Pairing = "random",
    self_pairs: int = 0,
    seed: int = 0,
) -> Model:
    """A weight-tied model whose step is one tick of a continuous thought machine.

    S_a = sync(z, action pairs); o = attention(query(S_a), keys, values); a = norm(glu(W [o, z]));
    every neuron d turns the last M of its own a_d into z_d by a model of its own; S_o = sync(z,
    output pairs); logits = V S_o. For a pair (i, j)

      alpha = r alpha + z_i z_j,   beta = r beta + 1,   S = alpha / sqrt(beta),   r =
      exp(-clip(decay_ij, 0, 15)),

    so that with r = 1, where decays begin, S is the inner product of both neurons' pasts over the
    root of their length.

    Args:
      places: L, of the input.
      channels: of the input.
      classes: C.
      width: D, neurons.
      ticks: the most of them; weights are tied, so it may be more than in training.
      answers: P, where a row has an answer at each of P places (it need not be L); None for one a
        row.
      memory: M, ticks of history that a neuron sees.
      hidden: units of each neuron's own model.
      features: of keys, values and query, over all heads.
      heads: of attention; must divide `features`.
      action, out: pairs that the query and the answer are read from; with "first_last" neurons, all
        pairs of which are taken, the last ones for the query and the first for the answer.
      pairing: "random", both neurons of a pair drawn from all; or "first_last".
      self_pairs: how many of the random pairs are a neuron with itself, of either kind.
      seed: of the random pairs, which are part of the model and not of its parameters.

    Returns:
      A weight-tied `Model`: inputs floats `[B, L, channels]`, outputs logits `[E, B, C]`, or `[E,
      B, P, C]` with `answers`. State: "keys" and "values" `[b, L, heads, features / heads]`, which
      no tick changes; "z" `[b, D]`; "history" `[b, D, M]`; and float32 `[b, pairs]` "action_alpha",
      "action_beta", "out_alpha", "out_beta". The first z and history are parameters.

    Raises:
      ValueError, TypeError: a number below 1, an unknown `pairing`, `heads` that do not divide
        `features`, more `self_pairs` than pairs, or with "first_last" any of them or more neurons
        than `width`; inputs of another shape or not floating point.

    Example:
      >>> model = ctm(6, 1, 2, width=16, ticks=3, answers=6)
      >>> params = model.init(jax.random.key(0))
      >>> state = model.embed(params, jnp.ones((4, 6, 1)))
      >>> state["z"].shape, state["history"].shape, state["out_alpha"].shape
      ((4, 16), (4, 16, 8), (4, 32))

    Source: Darlow et al. 2025, arXiv 2505.05522, with the layers and first values of the released
      code: the first z counts in both
    synchronisations, so the query of tick t reads z_1..z_t and the answer z_1..z_{t+1}. Deviations:
    synapses of one layer (the U-Net of deeper ones is left out); matrices with nothing between them
    are one (query, keys and values are projected once, keys and values before the first tick;
    attention has no matrix behind it); no dropout; learned positions; no learned temperature in the
    neurons' models, which their weights contain; decays beyond 0..15 stay as they are and count as
    the nearer end, where the code moves the parameters back (gradients are reverse mode alone).
    """
    sizes = dict(
        places=places,
        channels=channels,
        classes=classes,
        width=width,
        ticks=ticks,
        memory=memory,
        hidden=hidden,
    )
    sizes |= dict(features=features, heads=heads, action=action, out=out) | (
        {} if answers is None else dict(answers=answers)
    )
    for name, value in sizes.items():
        positive_integer(value, name)
    if features % heads:
        raise ValueError(f"`features` must be a multiple of the {heads} `heads`, got {features}")
    if pairing not in ("random", "first_last"):
        raise ValueError(f"`pairing` must be 'random' or 'first_last', got {pairing!r}")
    if self_pairs and (
        pairing != "random" or positive_integer(self_pairs, "self_pairs") > min(action, out)
    ):
        raise ValueError(
            f"`self_pairs` must lie in 0..{min(action, out)} and goes with random pairs, got {self_pairs} of {pairing!r}"
        )
    if pairing == "first_last" and max(action, out) > width:
        raise ValueError(
            f"`action` and `out` must be at most the {width} neurons of `width`, got {action} and {out}"
        )
    looked, told = neuron_pairs(width, action, out, pairing, self_pairs, seed)
    embedding, tick = (
        Apply(Embed(features, heads), "embed"),
        Apply(Tick(hidden, looked, told), "tick"),
    )
    head = Apply(Head(classes, answers), "head")

    def init(key):
        keys = jax.random.split(key, 5)
        first = {
            "z_embedding": uniform(math.sqrt(1 / width))(
                keys[0], (width,)
            ),  # as an embedding it is not decayed
            "history_embedding": uniform(math.sqrt(1 / (width + memory)))(keys[1], (width, memory)),
        }
        seen = jnp.zeros((1, places, heads, features // heads))
        state = start(first, seen, seen, looked, told)
        return {
            "start": first,
            "embed": initial(embedding.module, keys[2], jnp.zeros((1, places, channels))),
            "tick": initial(tick.module, keys[3], state),
            "head": initial(head.module, keys[4], state),
        }

    def embed(params, x):
        check_input(x, (places, channels), "strings")
        keys, values = embedding(params, x)
        return start(params["start"], keys, values, looked, told)

    names = tuple(f"tick{i:03d}" for i in range(ticks))
    return Model(
        init, embed, lambda params: tied_step(tick, head, decays_in_range(params)), ticks, names
    )
