"""Continuous thought machine: neurons that read their own history and answer by synchronisation."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, PyTree, Rows, Shaped
from dynexit.core.types import Model
from dynexit.engine.steps import tied_step
from dynexit.layers.attention import Projected, attend
from dynexit.layers.dense import Dense
from dynexit.layers.inputs import check_input
from dynexit.layers.linen import Apply, initial, step_names
from dynexit.layers.norms import LayerNorm
from dynexit.models.recurrent.settings_reasoners import Ctm
from dynexit.models.recurrent.synchronisation import (
    Pairs,
    accumulated,
    decays_in_range,
    neuron_pairs,
    synchronisation,
)
from dynexit.transforms.best_so_far import best_so_far


def uniform(bound: float) -> Callable[[Array, tuple[int, ...]], Array]:
    """An initialiser, uniform in -bound..bound."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


class Embed(nn.Module):
    """Keys and values `[b, L, heads, d]` of inputs `[b, L, channels]` with learned positions."""

    features: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b L channels"]) -> tuple[Projected, Projected]:
        e = Dense(self.features, name="input")(x)
        draw = nn.initializers.normal(1.0)
        where = self.param("position_embedding", draw, e.shape[1:], jnp.float32)
        e = LayerNorm(name="norm")(e + where.astype(e.dtype)[None])
        both = Dense((2, self.heads, self.features // self.heads), name="key_value")(e)
        return both[:, :, 0], both[:, :, 1]


class NeuronModels(nn.Module):
    """An MLP of its own for each neuron, of two layers with a GLU: `[b, D, M]` to `[b, D]`."""

    hidden: int

    @nn.compact
    def __call__(self, history: Float[Array, "b D M"]) -> Float[Array, "b D"]:
        # Neurons first: the products of matrices then need no transposition in between.
        x, zeros = history.swapaxes(0, 1), nn.initializers.zeros
        for name, features in (("first", 2 * self.hidden), ("second", 2)):
            neurons, _, inputs = x.shape
            draw = uniform((inputs + features) ** -0.5)
            kernel = self.param(f"{name}_kernel", draw, (neurons, inputs, features))
            bias = self.param(f"{name}_bias", zeros, (neurons, features), jnp.float32)
            product = jnp.einsum("nbi,nio->nbo", x, kernel.astype(x.dtype))
            x = nn.glu(product + bias.astype(x.dtype)[:, None])
        return x[..., 0].T


class Tick(nn.Module):
    """One tick: attention to the input, the synapses between neurons, each neuron's own model."""

    hidden: int
    action: Pairs
    out: Pairs

    @nn.compact
    def __call__(self, state: Rows) -> Rows:
        z, keys, values = state["z"], state["keys"], state["values"]
        zeros = nn.initializers.zeros
        decay = lambda name, pairs: self.param(
            f"{name}_decay", zeros, (len(pairs[0]),), jnp.float32
        )
        state = state | accumulated(state, "action", z, self.action, decay("action", self.action))
        query = Dense(keys.shape[2:], name="query")(
            synchronisation(state, "action").astype(z.dtype)
        )
        read = attend(query[:, None], keys, values).reshape(z.shape[0], -1)
        mixed = Dense(2 * z.shape[1], name="synapses")(jnp.concatenate([read, z], axis=-1))
        before = LayerNorm(name="norm")(nn.glu(mixed))
        history = jnp.concatenate([state["history"][:, :, 1:], before[:, :, None]], axis=-1)
        z = NeuronModels(self.hidden, name="neurons")(history)
        new = accumulated(state, "out", z, self.out, decay("out", self.out))
        return state | new | {"z": z, "history": history}


class Head(nn.Module):
    """Logits `[b, C]` or `[b, P, C]` of the synchronisation of the output pairs."""

    classes: int
    answers: int | None

    @nn.compact
    def __call__(self, state: Rows) -> Float[Array, "B ... C"]:
        s = synchronisation(state, "out").astype(state["z"].dtype)
        logits = Dense((self.answers or 1) * self.classes, name="logits")(s)
        return logits if self.answers is None else logits.reshape(-1, self.answers, self.classes)


def start(first: PyTree, keys: Projected, values: Projected, action: Pairs, out: Pairs) -> Rows:
    """The state before the first tick.

    The synchronisation of the answer begins with the first z, that of the query with nothing.
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
        f"{name}_{part}": jnp.zeros((b, len(pairs[0])), jnp.float32) for part in ("alpha", "beta")
    }
    begun = accumulated(nothing("out", out), "out", state["z"], out, jnp.zeros(len(out[0])))
    return state | nothing("action", action) | begun


def ctm(settings: Ctm, inputs: tuple[int, ...], classes: int) -> Model:
    """Builds the model of `dx.models.Ctm`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    s, width = settings, settings.width
    answers = inputs[0] if s.answers == "each" else s.answers
    action, out = neuron_pairs(width, s.action, s.out, s.pairing, s.self_pairs, s.seed)
    embedding = Apply(Embed(s.features, s.heads), "embed")
    tick, head = Apply(Tick(s.hidden, action, out), "tick"), Apply(Head(classes, answers), "head")

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 5)
        z, history = uniform(math.sqrt(1 / width)), uniform(math.sqrt(1 / (width + s.memory)))
        first = {  # named as embeddings, so that they are not decayed
            "z_embedding": z(keys[0], (width,)),
            "history_embedding": history(keys[1], (width, s.memory)),
        }
        seen = jnp.zeros((1, inputs[0], s.heads, s.features // s.heads))
        state = start(first, seen, seen, action, out)
        return {
            "start": first,
            "embed": initial(embedding.module, keys[2], jnp.zeros((1, *inputs))),
            "tick": initial(tick.module, keys[3], state),
            "head": initial(head.module, keys[4], state),
        }

    def embed(params: PyTree, x: Shaped[AnyArray, "B ..."]) -> PyTree:
        check_input(x, inputs, "strings")
        keys, values = embedding(params, x)
        return start(params["start"], keys, values, action, out)

    steps = lambda params: tied_step(tick, head, decays_in_range(params))
    model = Model(init, embed, steps, s.ticks, step_names(s.ticks, word="tick"))
    return best_so_far(model) if s.best_so_far else model
