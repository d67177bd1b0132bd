"""Universal transformer: one transformer block, iterated, with a halting logit at every place."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.data import Tokens
from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, PyTree, Rows, Shaped
from dynexit.core.types import Model, Step
from dynexit.engine.steps import tied_step
from dynexit.layers.attention import SelfAttention
from dynexit.layers.halting import HaltingHead
from dynexit.layers.heads import LogitsHead
from dynexit.layers.inputs import read_tokens
from dynexit.layers.linen import Apply, initial, merged, step_names
from dynexit.layers.mlp import MLP
from dynexit.layers.norms import LayerNorm
from dynexit.models.recurrent.settings_transformers import UniversalTransformer
from dynexit.transforms.averaging import averaged_step, averaging_state


def coordinates(
    positions: Int[Array, "b L"], step: Int[Array, "b"], width: int
) -> Float[Array, "b L D"]:
    """Sinusoids of place i and step t, added.

    P[2j] = sin(i / 10000^(2j/D)) + sin(t / 10000^(2j/D)), and P[2j+1] with cos.

    Args:
      positions: i, integers `[b, L]`.
      step: t from 1, integers `[b]`.
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
    """Attention and transition on `[b, L, D]`, with norms after the sums or before the branches."""

    heads: int
    hidden: int
    post_norm: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b L D"], real: Bool[Array, "b L"] | None = None
    ) -> Float[Array, "b L D"]:
        attention = merged(self, SelfAttention(self.heads))
        transition = merged(self, MLP(self.hidden, nn.relu))
        norm1, norm2 = LayerNorm(name="norm1"), LayerNorm(name="norm2")
        if self.post_norm:
            x = norm1(x + attention(x, real))
            return norm2(x + transition(x))
        x = x + attention(norm1(x), real)
        return x + transition(norm2(x))


@dataclasses.dataclass(frozen=True)
class Pondering:
    """One step: adds the coordinates, computes the halting logit, then applies the block."""

    block: Apply
    halt: Apply

    def __call__(self, p: PyTree, state: Rows) -> Rows:
        t, h, real = state["step"] + 1, state["h"], state.get("mask")
        h = h + coordinates(state["positions"], t, h.shape[-1]).astype(h.dtype)
        logit = self.halt(p, h, None, real)
        return {**state, "step": t, "halt_logit": logit, "h": self.block(p, h, real)}


@dataclasses.dataclass(frozen=True)
class Read:
    """The output of a step: logits with a head, else the state, which is averaged first."""

    head: Apply | None

    def __call__(self, p: PyTree, state: Rows) -> Rows:
        h = state["h"]
        output = {"hidden": h} if self.head is None else {"logits": self.head(p, h)}
        output["halt_logit"] = state["halt_logit"]
        return output | ({"mask": state["mask"]} if "mask" in state else {})


@dataclasses.dataclass(frozen=True)
class OnMean:
    """The exit head on the mean state."""

    head: Apply

    def __call__(self, p: PyTree, mean: Rows) -> Rows:
        return {"logits": self.head(p, mean["hidden"])}


def universal_transformer(settings: UniversalTransformer, inputs: Tokens, classes: int) -> Model:
    """Builds the model of `dx.models.UniversalTransformer`; `inputs` are `dx.Tokens`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    s, vocabulary, width = settings, inputs.vocabulary, settings.width
    pool = "mean" if s.per == "example" else "none"
    block = Apply(Block(s.heads, s.hidden or 4 * width, s.post_norm), "block")
    halt = Apply(HaltingHead(bias=s.halt_bias, pool=pool), "halt")
    head = Apply(LogitsHead(classes, norm=not s.post_norm), "head")
    ponder, read = Pondering(block, halt), Read(head if s.halting == "none" else None)

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 4)
        h = jnp.zeros((1, 2, width))
        parts = {
            apply.part: initial(apply.module, k, h)
            for apply, k in zip((block, halt, head), keys[:3], strict=True)
        }
        table = jax.random.normal(keys[3], (vocabulary, width), jnp.float32) * width**-0.5
        return {"embed": {"embedding": table}, **parts}

    def embed(params: PyTree, inputs: PyTree) -> PyTree:
        tokens, real, others = read_tokens(inputs, s.padding, ("positions",))
        h = _embedded(params["embed"]["embedding"], tokens)
        positions = others.get("positions", jnp.arange(h.shape[1], dtype=jnp.int32)[None])
        if positions.shape[1:] != h.shape[1:2] or positions.shape[0] not in (1, h.shape[0]):
            raise ValueError(
                f'`inputs["positions"]` must have shape {list(h.shape[:2])}, '
                f"got {list(positions.shape)}"
            )
        positions = jnp.broadcast_to(positions, h.shape[:2])
        state = {
            "h": h,
            "positions": positions,
            "step": jnp.zeros(h.shape[0], jnp.int32),
            "halt_logit": jnp.zeros(h.shape[: 1 if s.per == "example" else 2], h.dtype),
            **({} if real is None else {"mask": real}),
        }
        if s.halting == "none":
            return state
        return averaging_state(tied_step(ponder, read, params), state)

    def steps(params: PyTree) -> Step:
        step = tied_step(ponder, read, params)
        if s.halting == "none":
            return step
        return averaged_step(step, s.epsilon, s.halting, OnMean(head))

    return Model(init, embed, steps, s.steps, step_names(s.steps, 2))


def _embedded(table: Shaped[AnyArray, "V D"], tokens: Shaped[AnyArray, "B ..."]) -> Array:
    """The first state `[B, L, D]`, sqrt(D) times the embedding.

    Raises:
      ValueError: tokens that are neither integers `[B, L]` nor one-hot `[B, L, V]`.
    """
    table, (vocabulary, width) = jnp.asarray(table), table.shape
    shape, dtype = jnp.shape(tokens), jnp.result_type(tokens)
    if len(shape) == 3 and shape[-1] == vocabulary and jnp.issubdtype(dtype, jnp.floating):
        return tokens @ table.astype(dtype) * width**0.5
    if len(shape) == 2 and jnp.issubdtype(dtype, jnp.integer):
        return table[tokens] * width**0.5
    raise ValueError(
        f"`inputs` must be integers [B, L] or floating point [B, L, {vocabulary}], "
        f"got {dtype}{list(shape)}"
    )
