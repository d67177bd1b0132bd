"""Recursive reasoners: a tiny network refines a latent and an answer, and says whether that is
right (TRM; HRM's form too).
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array, Model, PyTree
from dynexit.engine.run import run_full
from dynexit.engine.steps import tied_step
from dynexit.layers.parts import Apply, attend, initial
from dynexit.solvers.fixed_point import relative_residual

Mixing = Literal["attention", "mlp"]
Gradient = Literal["cycle", "last"]
Nets = Literal[1, 2]


def linear(features: int, x: Array, name: str) -> Array:
    """A matrix without bias on the last axis. Rows and places are one axis: the gradient is then
    quicker on a CPU by half.
    """
    dense = nn.Dense(features, use_bias=False, dtype=x.dtype, name=name)
    return dense(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], features)


def rms_norm(x: Array) -> Array:
    """x / sqrt(mean x^2) over the last axis, in float32; no learned scale."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-5)).astype(x.dtype)


class SwiGLU(nn.Module):
    """silu(gate) x up, then down, over the last axis; hidden width 8/3 of it, rounded up to a
    multiple of 8.
    """

    @nn.compact
    def __call__(self, x):
        hidden = -(-8 * x.shape[-1] // 24) * 8
        gate, up = jnp.split(linear(2 * hidden, x, "gate_up"), 2, axis=-1)
        return linear(x.shape[-1], nn.silu(gate) * up, "down")


class Attention(nn.Module):
    """Every place looks at every place, `[b, L, D]`; where a place is, its embedding says."""

    heads: int

    @nn.compact
    def __call__(self, x):
        b, places, width = x.shape
        split = lambda t: t.reshape(b, places, self.heads, width // self.heads)
        q, k, v = map(split, jnp.split(linear(3 * width, x, "qkv"), 3, axis=-1))
        return linear(width, attend(q, k, v), "out")


class Net(nn.Module):
    """Layers x = norm(x + mix(x)), x = norm(x + swiglu(x)) on `[b, L, D]`."""

    layers: int
    mixing: Mixing
    heads: int

    @nn.compact
    def __call__(self, x):
        for k in range(self.layers):
            if self.mixing == "mlp":
                mixed = SwiGLU(name=f"mix{k}")(x.swapaxes(1, 2)).swapaxes(1, 2)
            else:
                mixed = Attention(self.heads, name=f"mix{k}")(x)
            x = rms_norm(x + mixed)
            x = rms_norm(x + SwiGLU(name=f"mlp{k}")(x))
        return x


class Embed(nn.Module):
    """Tokens `[b, L]` to sqrt(D) x embedding, `[b, L, D]`; where attention mixes, learned positions
    beside it.
    """

    vocabulary: int
    width: int
    positions: bool

    @nn.compact
    def __call__(self, tokens):
        draw = nn.initializers.truncated_normal(
            1.0
        )  # sqrt(D) times a standard deviation of 1 / sqrt(D)
        e = self.param("token_embedding", draw, (self.vocabulary, self.width))[tokens]
        if not self.positions:
            return e
        where = self.param("position_embedding", draw, (tokens.shape[1], self.width))
        return (e + where[None]) * jnp.asarray(0.5**0.5, e.dtype)


class Head(nn.Module):
    """From y: logits of every place, and from the mean over places whether all of them are right."""

    classes: int

    @nn.compact
    def __call__(self, y):
        sure = nn.Dense(
            1,
            dtype=y.dtype,
            name="halt",
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(-5.0),
        )(y.mean(axis=1))[:, 0]
        return linear(self.classes, y, "logits"), sure


@dataclasses.dataclass(frozen=True)
class Segment:
    """`cycles` cycles of `inner` latent updates and one of the answer; what the gradient does not
    reach is detached.
    """

    latent: Apply
    answer: Apply
    inner: int
    cycles: int
    gradient: Gradient

    def think(self, p: PyTree, s: PyTree) -> PyTree:
        """z = N(z + y + e)."""
        return {**s, "z": self.latent(p, s["z"] + s["y"] + s["input"])}

    def conclude(self, p: PyTree, s: PyTree) -> PyTree:
        """y = N(y + z)."""
        return {**s, "y": self.answer(p, s["y"] + s["z"])}

    def thought(self, p: PyTree, s: PyTree, times: int) -> PyTree:
        """`think` several times."""
        return run_full(tied_step(self.think, _state, p), s, times)[0] if times else s

    def cycle(self, p: PyTree, s: PyTree) -> PyTree:
        """z `inner` times, then y."""
        return self.conclude(p, self.thought(p, s, self.inner))

    def __call__(self, p: PyTree, state: PyTree) -> PyTree:
        still, s = jax.lax.stop_gradient((p, {name: state[name] for name in ("input", "y", "z")}))
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

    def __call__(self, p: PyTree, state: PyTree) -> PyTree:
        logits, sure = self.head(p, state["y"])
        return {"logits": logits, "halt_logit": sure, "change": state["change"]}


def recursive(
    places: int,
    vocabulary: int,
    classes: int,
    *,
    width: int,
    segments: int,
    inner: int = 6,
    cycles: int = 3,
    layers: int = 2,
    mixing: Mixing = "mlp",
    heads: int = 4,
    nets: Nets = 1,
    gradient: Gradient = "cycle",
) -> Model:
    """A weight-tied model whose step is one segment: T cycles of n latent updates and one of the
    answer.

    A cycle is z = N(z + y + e), n times, then y = N'(y + z). T - 1 cycles run without gradients,
    the last with the gradient through all n + 1 calls, and none goes on to the segment before: what
    segments share is (e, y, z) and the weights.
    TRM: `nets=1`, N' = N, `gradient="cycle"`. HRM: `nets=2, layers=4, inner=2, cycles=2,
      gradient="last"`.

    Args:
      places: L, of input and answer.
      vocabulary: V, tokens of the input.
      classes: C, at every place.
      width: D.
      segments: the most of them; weights are tied, so it may be more than in training.
      inner: n, latent updates a cycle.
      cycles: T, cycles a segment.
      layers: of a net.
      mixing: "mlp", a SwiGLU over the places, TRM's best on Sudoku; or "attention", with learned
        positions.
      heads: of attention; must divide `width` there.
      nets: 1 for one net that does both, 2 for one each.
      gradient: "cycle", through the last cycle, or "last", through the last latent update and the
        last answer alone (HRM).

    Returns:
      A weight-tied `Model`: inputs integers `[B, L]` in 0..V-1, outputs `{"logits": [E, B, L, C],
      "halt_logit": [E, B], "change": [E, B]}`, the last ||z - z'|| / ||z|| over the segment. State:
      "input" (e), "y", "z", `[b, L, D]`, and "change". The first y and z are drawn once with the
      parameters (`params["start"]`) and never trained. The halting logit starts at -5 for every
      row.

    Raises:
      ValueError, TypeError: a number below 1, an unknown word, `heads` that do not divide `width`;
        inputs of another shape or not integers.

    Example:
      >>> model = recursive(16, 5, 4, width=8, segments=3)
      >>> params = model.init(jax.random.key(0))
      >>> state = model.embed(params, jnp.zeros((2, 16), jnp.int32))
      >>> {name: leaf.shape for name, leaf in state.items()}
      {'change': (2,), 'input': (2, 16, 8), 'y': (2, 16, 8), 'z': (2, 16, 8)}

    Source: Jolicoeur-Martineau 2025, arXiv 2510.04871 (TRM); Wang et al. 2025, arXiv 2506.21734
      (HRM). Deviations: learned
    positions in place of RoPE; no puzzle embeddings, so the halting head reads the mean of y over
    the places where theirs reads a place of its own; the halting logit alone, without the one to
    continue; hidden widths in steps of 8, not 256.
    """
    sizes = dict(
        places=places,
        vocabulary=vocabulary,
        classes=classes,
        width=width,
        segments=segments,
        inner=inner,
    )
    for name, value in (sizes | dict(cycles=cycles, layers=layers, heads=heads)).items():
        positive_integer(value, name)
    for name, value, known in (
        ("mixing", mixing, ("mlp", "attention")),
        ("nets", nets, (1, 2)),
        ("gradient", gradient, ("cycle", "last")),
    ):
        if value not in known:
            raise ValueError(f"`{name}` must be {' or '.join(map(repr, known))}, got {value!r}")
    if mixing == "attention" and width % heads:
        raise ValueError(f"`width` must be a multiple of the {heads} `heads`, got {width}")
    net = Net(layers, mixing, heads)
    embedding, head = (
        Apply(Embed(vocabulary, width, mixing == "attention"), "embed"),
        Apply(Head(classes), "head"),
    )
    parts = ("net",) if nets == 1 else ("latent", "answer")
    segment = Segment(Apply(net, parts[0]), Apply(net, parts[-1]), inner, cycles, gradient)

    def init(key):
        keys = jax.random.split(key, 3 + len(parts))
        hidden, tokens = jnp.zeros((1, places, width)), jax.ShapeDtypeStruct((1, places), jnp.int32)
        first = jax.random.truncated_normal(keys[0], -2.0, 2.0, (2, width))
        return {
            "start": {
                "y_embedding": first[0],
                "z_embedding": first[1],
            },  # as an embedding it is not decayed either
            "embed": initial(embedding.module, keys[1], tokens),
            "head": initial(head.module, keys[2], hidden),
            **{part: initial(net, key, hidden) for part, key in zip(parts, keys[3:], strict=True)},
        }

    def embed(params, tokens):
        if jnp.ndim(tokens) != 2 or jnp.shape(tokens)[1] != places:
            raise ValueError(
                f"`inputs` must be tokens of shape [B, {places}], got {list(jnp.shape(tokens))}"
            )
        if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
            raise TypeError(f"`inputs` must be integers, got {jnp.result_type(tokens)}")
        e = embedding(params, tokens)
        first = jax.lax.stop_gradient(params["start"])
        y, z = (jnp.broadcast_to(first[name], e.shape) for name in ("y_embedding", "z_embedding"))
        return {"change": jnp.ones(e.shape[0], jnp.float32), "input": e, "y": y, "z": z}

    names = tuple(f"segment{i:03d}" for i in range(segments))
    return Model(
        init, embed, lambda params: tied_step(segment, Read(head), params), segments, names
    )


def _state(p: PyTree, state: PyTree) -> PyTree:
    return state["y"]
