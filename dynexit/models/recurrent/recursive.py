"""Recursive reasoners: a tiny net refines a latent and an answer, and has a halting logit."""

import dataclasses
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.data import Tokens
from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, PyTree, Rows
from dynexit.core.types import Model
from dynexit.engine.run import run_full
from dynexit.engine.steps import tied_step
from dynexit.layers.attention import SelfAttention
from dynexit.layers.dense import Dense
from dynexit.layers.halting import HaltingHead
from dynexit.layers.inputs import check_tokens, read_tokens
from dynexit.layers.linen import Apply, initial, merged, step_names
from dynexit.layers.mlp import MLP, swiglu_width
from dynexit.layers.norms import RMSNorm
from dynexit.models.recurrent.settings_reasoners import Recursive
from dynexit.solvers.fixed_point import relative_residual

Places: TypeAlias = Float[Array, "b L D"]
Real: TypeAlias = Bool[Array, "b L"] | None


def swiglu(width: int, name: str) -> MLP:
    """A SwiGLU without biases."""
    return MLP(swiglu_width(width), nn.silu, gate="fused", bias=False, name=name)


def zero_padded(x: Places, real: Real) -> Places:
    """x `[b, L, D]` with zeros where `real`, bool `[b, L]`, is False."""
    return x if real is None else jnp.where(real[..., None], x, 0)


class Net(nn.Module):
    """Layers x = norm(x + mix(x)), x = norm(x + swiglu(x)) on `[b, L, D]`; padded places stay 0."""

    layers: int
    mixing: Literal["mlp", "attention"]
    heads: int

    @nn.compact
    def __call__(self, x: Places, real: Real = None) -> Places:
        norm = RMSNorm(1e-5, scaled=False)
        for k in range(self.layers):
            if self.mixing == "mlp":
                mixed = swiglu(x.shape[1], f"mix{k}")(x.swapaxes(1, 2)).swapaxes(1, 2)
            else:
                mixed = SelfAttention(self.heads, bias="none", name=f"mix{k}")(x, real)
            x = norm(x + mixed)
            x = zero_padded(norm(x + swiglu(x.shape[-1], f"mlp{k}")(x)), real)
        return x


class Embed(nn.Module):
    """Tokens `[b, L]` to sqrt(D) x embedding, `[b, L, D]`; with learned positions for attention."""

    vocabulary: int
    width: int
    positions: bool

    @nn.compact
    def __call__(self, tokens: Int[AnyArray, "b L"]) -> Places:
        # sqrt(D) times a standard deviation of 1 / sqrt(D)
        draw = nn.initializers.truncated_normal(1.0)
        table = self.param("token_embedding", draw, (self.vocabulary, self.width), jnp.float32)
        e = jnp.asarray(table)[tokens]
        if not self.positions:
            return e
        where = self.param("position_embedding", draw, (tokens.shape[1], self.width), jnp.float32)
        return (e + where[None]) * jnp.asarray(0.5**0.5, e.dtype)


class Head(nn.Module):
    """From y: logits of every place, and the logit of all of them being right, `[b]`."""

    classes: int

    @nn.compact
    def __call__(
        self, y: Places, real: Real = None
    ) -> tuple[Float[Array, "b L C"], Float[Array, "b"]]:
        halting = HaltingHead(bias=-5.0, pool="mean", kernel_init=nn.initializers.zeros)
        halt_logit = merged(self, halting)(y, None, real)
        return Dense(self.classes, bias=False, name="logits")(y), halt_logit


@dataclasses.dataclass(frozen=True)
class Segment:
    """`cycles` cycles of `inner` latent updates and one answer update.

    What the gradient does not reach is detached.
    """

    latent: Apply
    answer: Apply
    inner: int
    cycles: int
    gradient: Literal["cycle", "last"]

    def think(self, p: PyTree, s: Rows) -> Rows:
        """z = N(z + y + e)."""
        return {**s, "z": self.latent(p, s["z"] + s["y"] + s["input"], s.get("mask"))}

    def conclude(self, p: PyTree, s: Rows) -> Rows:
        """y = N(y + z)."""
        return {**s, "y": self.answer(p, s["y"] + s["z"], s.get("mask"))}

    def thought(self, p: PyTree, s: Rows, times: int) -> Rows:
        """`think` several times."""
        return run_full(tied_step(self.think, _state, p), s, times)[0] if times else s

    def cycle(self, p: PyTree, s: Rows) -> Rows:
        """z `inner` times, then y."""
        return self.conclude(p, self.thought(p, s, self.inner))

    def __call__(self, p: PyTree, state: Rows) -> Rows:
        s = {name: leaf for name, leaf in state.items() if name != "change"}
        still, s = jax.lax.stop_gradient((p, s))
        if self.cycles > 1:
            s = run_full(tied_step(self.cycle, _state, still), s, self.cycles - 1)[0]
        if self.gradient == "last":
            s = self.thought(still, s, self.inner - 1)
        s = {**jax.lax.stop_gradient(s), "input": state["input"]}
        s = self.cycle(p, s) if self.gradient == "cycle" else self.conclude(p, self.think(p, s))
        return {**s, "change": relative_residual(state["z"], s["z"])}


@dataclasses.dataclass(frozen=True)
class Read:
    """The output of a segment."""

    head: Apply

    def __call__(self, p: PyTree, state: Rows) -> Rows:
        logits, halt_logit = self.head(p, state["y"], state.get("mask"))
        mask = {"mask": state["mask"]} if "mask" in state else {}
        return {"logits": logits, "halt_logit": halt_logit, "change": state["change"], **mask}


def recursive(settings: Recursive, inputs: Tokens, classes: int) -> Model:
    """Builds the model of `dx.models.Recursive`; `inputs` are `dx.Tokens` with a length."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    s, places, width = settings, inputs.length, settings.width
    net = Net(s.layers, s.mixing, s.heads)
    embedding = Apply(Embed(inputs.vocabulary, width, s.mixing == "attention"), "embed")
    head = Apply(Head(classes), "head")
    parts = ("net",) if s.nets == 1 else ("latent", "answer")
    latent, answer = Apply(net, parts[0]), Apply(net, parts[-1])
    segment = Segment(latent, answer, s.inner, s.cycles, s.gradient)

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3 + len(parts))
        hidden, tokens = jnp.zeros((1, places, width)), jax.ShapeDtypeStruct((1, places), jnp.int32)
        first = jax.random.truncated_normal(keys[0], -2.0, 2.0, (2, width), jnp.float32)
        return {
            # named as embeddings, so that they are not decayed
            "start": {"y_embedding": first[0], "z_embedding": first[1]},
            "embed": initial(embedding.module, keys[1], tokens),
            "head": initial(head.module, keys[2], hidden),
            **{part: initial(net, key, hidden) for part, key in zip(parts, keys[3:], strict=True)},
        }

    def embed(params: PyTree, inputs: PyTree) -> PyTree:
        tokens, real, _ = read_tokens(inputs, s.padding)
        check_tokens(tokens, "inputs", places)
        e = zero_padded(embedding(params, tokens), real)
        first = jax.lax.stop_gradient(params["start"])
        start = lambda name: zero_padded(jnp.broadcast_to(first[name], e.shape), real)
        state = {"input": e, "y": start("y_embedding"), "z": start("z_embedding")}
        state["change"] = jnp.ones(e.shape[0], jnp.float32)
        return state if real is None else {**state, "mask": real}

    steps = lambda params: tied_step(segment, Read(head), params)
    return Model(init, embed, steps, s.segments, step_names(s.segments, word="segment"))


def _state(p: PyTree, state: PyTree) -> PyTree:
    return state["y"]
