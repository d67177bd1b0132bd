"""Universal transformer: one transformer block again and again, told place and step each time,
which says when a place is done.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array, Model, PyTree
from dynexit.engine.steps import tied_step
from dynexit.layers.parts import Apply, Norm, attend, initial
from dynexit.transforms.averaging import averaged_step, averaging_state

HALTING = ("accumulated", "basic", "none")
PER = ("position", "example")


def coordinates(positions: Array, step: Array, width: int) -> Array:
    """Sinusoids of place i and step t, added up: P[2j] = sin(i / 10000^(2j/D)) + sin(t /
    10000^(2j/D)), P[2j+1] with cos.

    Args:
      positions: i, int32 `[b, L]`.
      step: t from 1, int32 `[b]`.
      width: D, even.

    Returns:
      float32 `[b, L, D]`.

    Example:
      >>> here = coordinates(jnp.array([[0, 1]]), jnp.array([1]), 4)
      >>> # sin 0 + sin 1, cos 0 + cos 1, and the same of t / 100
      >>> [round(x, 4) for x in here[0, 0].tolist()]
      [0.8415, 1.5403, 0.01, 1.9999]

    Source: Dehghani et al. 2019, equations 6 and 7.
    """
    rates = jnp.asarray(10000.0 ** (-2 * np.arange(width // 2) / width), jnp.float32)

    def table(x: Array) -> Array:
        angles = x.astype(jnp.float32)[..., None] * rates.reshape((1,) * x.ndim + rates.shape)
        return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*x.shape, width)

    return table(positions) + table(step)[:, None]


class Block(nn.Module):
    """Attention and transition on `[b, L, D]`, norms behind the sums as in the paper or before the
    branches as in the code.
    """

    heads: int
    hidden: int
    post_norm: bool

    @nn.compact
    def __call__(self, x):
        b, length, width = x.shape
        dense = lambda features, name: nn.Dense(features, dtype=x.dtype, name=name)
        split = lambda t: t.reshape(b, length, self.heads, width // self.heads)

        def attention(x):
            q, k, v = map(split, jnp.split(dense(3 * width, "qkv")(x), 3, axis=-1))
            return dense(width, "out")(attend(q, k, v))

        transition = lambda x: dense(width, "down")(nn.relu(dense(self.hidden, "up")(x)))
        norm1, norm2 = Norm(name="norm1"), Norm(name="norm2")
        if self.post_norm:
            x = norm1(x + attention(x))
            return norm2(x + transition(x))
        x = x + attention(norm1(x))
        return x + transition(norm2(x))


class Halt(nn.Module):
    """Halting logit from the state: `[b, L, D]` to `[b, L]`, or `[b]` from the mean over the
    places.
    """

    per: str
    bias: float

    @nn.compact
    def __call__(self, x):
        x = x.mean(axis=1) if self.per == "example" else x
        return nn.Dense(
            1, dtype=x.dtype, bias_init=nn.initializers.constant(self.bias), name="halt"
        )(x)[..., 0]


class Head(nn.Module):
    """Logits at every place, `[b, L, D]` to `[b, L, C]`; behind a norm where the blocks do not end
    in one.
    """

    classes: int
    norm: bool

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, dtype=x.dtype, name="logits")(
            Norm(name="norm")(x) if self.norm else x
        )


@dataclasses.dataclass(frozen=True)
class Pondering:
    """One step without its exit head: coordinates, halting logit of the state before the block,
    block; equal parts are equal.
    """

    block: Apply
    halt: Apply

    def __call__(self, p: PyTree, state: PyTree) -> PyTree:
        t = state["step"] + 1
        h = state["h"]
        h = h + coordinates(state["positions"], t, h.shape[-1]).astype(h.dtype)
        return {**state, "step": t, "halt_logit": self.halt(p, h), "h": self.block(p, h)}


def universal_transformer(
    vocabulary: int,
    classes: int,
    *,
    width: int,
    heads: int,
    steps: int,
    hidden: int | None = None,
    halting: str = "accumulated",
    per: str = "position",
    epsilon: float = 0.01,
    halt_bias: float = 1.0,
    post_norm: bool = True,
) -> Model:
    """A weight-tied transformer encoder that answers at every place, with adaptive computation time
    or without.

    h_0 = embedding; x = h_{t-1} + P_t, p_t = sigmoid(w x + b), a = LN(x + MHSA(x)), h_t = LN(a + W2
    relu(W1 a)); what is read is the mean of the h_t weighted by p_t
    (`dynexit.transforms.averaging`).

    Args:
      vocabulary: V, kinds of tokens.
      classes: C, at every place.
      width: D, even and a multiple of `heads`.
      heads: attention heads.
      steps: N, the most steps.
      hidden: width of the transition; None for 4 D.
      halting: "accumulated" is ACT, "basic" the released code's update, and "none" gives each
        step's own answer beside its halting logit, which is what
        `dynexit.methods.halting.pondernet` wants (with `per="example"`).
      per: "position", each place halts by itself and a row leaves once all have; "example", from
        the mean of the state over places.
      epsilon: a place has halted once its probabilities sum to more than 1 - epsilon.
      halt_bias: where the halting logit begins; 1 is p = 0.73 and so two steps, -1 is p = 0.27 and
        four.
      post_norm: False for norms before the branches, as in the released code, with one more before
        the logits.

    Returns:
      A weight-tied `Model`. Inputs: tokens, integers `[B, L]`, or one-hot `[B, L, V]` floating
      point, whose type is then the compute type (of tokens it is that of the embedding); or
      `{"tokens": either, "positions": int32 [B, L]}`, where positions do not count from 0. L is
      any. Outputs `{"logits": [N, B, L, C], "halt_logit", "accumulated": [N, B, L] or [N, B],
      "gate": [N, B]}`, the last two without "none".

    Raises:
      ValueError, TypeError: a number below 1, `width` odd or not a multiple of `heads`, an unknown
        `halting` or `per`, `epsilon` not between 0 and 1; from `embed`, inputs of another shape.

    Example:
      >>> model = universal_transformer(11, 10, width=8, heads=2, steps=3)
      >>> params = model.init(jax.random.key(0))
      >>> state = model.embed(params, jnp.zeros((4, 6), jnp.int32))
      >>> state["inner"]["h"].shape, state["spent"].shape
      ((4, 6, 8), (4, 6))

    Source: Dehghani et al. 2019, arXiv 1807.03819, encoder. Deviations: no dropout, no mask of
      padding (it is a token like any
    other and must halt too); a halted place is still transformed and attended to while its row
    runs, with weight 0, as in the released code (the paper copies its state). To meet longer
    strings than in training, shift the positions at random in
    training: an experiment's `augment` may turn tokens into tokens and positions.
    """
    hidden = 4 * width if hidden is None else hidden
    for name, value in dict(
        vocabulary=vocabulary, classes=classes, width=width, heads=heads, steps=steps, hidden=hidden
    ).items():
        positive_integer(value, name)
    if width % heads or width % 2:
        raise ValueError(f"`width` must be even and a multiple of the {heads} `heads`, got {width}")
    for name, value, known in (("halting", halting, HALTING), ("per", per, PER)):
        if value not in known:
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}"
            )
    if not 0 < epsilon < 1:
        raise ValueError(f"`epsilon` must lie between 0 and 1, both excluded, got {epsilon}")
    block, halt = (
        Apply(Block(heads, hidden, post_norm), "block"),
        Apply(Halt(per, halt_bias), "halt"),
    )
    head = Apply(Head(classes, not post_norm), "head")
    ponder, read = Pondering(block, halt), _Read(head if halting == "none" else None)

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 4)
        h = jnp.zeros((1, 2, width))
        modules = {"block": block, "halt": halt, "head": head}
        parts = {
            name: initial(part.module, k, h)
            for (name, part), k in zip(modules.items(), keys[:3], strict=True)
        }
        return {
            "embed": {"embedding": jax.random.normal(keys[3], (vocabulary, width)) * width**-0.5},
            **parts,
        }

    def embed(params: PyTree, inputs: PyTree) -> PyTree:
        h, positions = _embedded(params["embed"]["embedding"], inputs, vocabulary, width)
        empty = jnp.zeros(positions.shape if per == "position" else positions.shape[:1], h.dtype)
        state = {
            "h": h,
            "positions": positions,
            "step": jnp.zeros(positions.shape[0], jnp.int32),
            "halt_logit": empty,
        }
        return (
            state if halting == "none" else averaging_state(tied_step(ponder, read, params), state)
        )

    def make_steps(params: PyTree):
        step = tied_step(ponder, read, params)
        return step if halting == "none" else averaged_step(step, epsilon, halting, _OnMean(head))

    names = tuple(f"step{i:02d}" for i in range(steps))
    return Model(init, embed, make_steps, steps, names)


@dataclasses.dataclass(frozen=True)
class _Read:
    """What a step says: its own logits where there is a head, else the state, which is averaged
    before the head sees it.
    """

    head: Apply | None

    def __call__(self, p: PyTree, state: PyTree) -> PyTree:
        says = {"hidden": state["h"]} if self.head is None else {"logits": self.head(p, state["h"])}
        return {**says, "halt_logit": state["halt_logit"]}


@dataclasses.dataclass(frozen=True)
class _OnMean:
    """The exit head on the mean state."""

    head: Apply

    def __call__(self, p: PyTree, mean: PyTree) -> PyTree:
        return {"logits": self.head(p, mean["hidden"])}


def _embedded(table: Array, inputs: Any, vocabulary: int, width: int) -> tuple[Array, Array]:
    """The first state `[B, L, D]` and the positions `[B, L]`.

    Raises:
      ValueError: shapes that do not fit.
    """
    tokens, positions = (
        (inputs["tokens"], inputs["positions"]) if isinstance(inputs, dict) else (inputs, None)
    )
    one_hot = jnp.issubdtype(jnp.result_type(tokens), jnp.floating)
    wanted = f"[B, L, {vocabulary}] floating point or integers [B, L]"
    if jnp.ndim(tokens) != 2 + one_hot or (one_hot and tokens.shape[-1] != vocabulary):
        raise ValueError(
            f"`inputs` must be {wanted}, got {jnp.result_type(tokens)}{list(jnp.shape(tokens))}"
        )
    h = (tokens @ table.astype(tokens.dtype) if one_hot else table[tokens]) * width**0.5
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(h.shape[1], dtype=jnp.int32), h.shape[:2])
    elif positions.shape != h.shape[:2]:
        raise ValueError(
            f"`inputs` has positions of shape {positions.shape} for tokens of shape {tokens.shape}"
        )
    return h, positions
