"""A vision transformer of few blocks, each applied several times over: what is distilled from a
deep one (Raptor).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dynexit.core.checks import positive_integer
from dynexit.core.stacking import take
from dynexit.core.types import Array, Model, PyTree, Step
from dynexit.layers.parts import Norm, attend, block_names, check_input, initial, initial_stack
from dynexit.models.vision.vit import Embed, Head
from dynexit.solvers.fixed_point import relative_residual


class DepthScale(nn.Module):
    """Three vectors near 1, `[b, 1, D]` each, out of the layer's index t `[b]`."""

    width: int

    @nn.compact
    def __call__(self, t, dtype):
        small = nn.initializers.normal(1e-4)
        hidden = nn.silu(nn.Dense(16, dtype=dtype, name="in")(t.astype(dtype)[:, None]))
        scales = 1 + nn.Dense(
            3 * self.width, dtype=dtype, kernel_init=small, bias_init=small, name="out"
        )(hidden)
        return jnp.split(scales[:, None], 3, axis=-1)


class Block(nn.Module):
    """Pre-norm attention and MLP on tokens `[b, L, D]`, scaled by the depth t `[b]` at which the
    block is applied.
    """

    heads: int

    @nn.compact
    def __call__(self, x, t):
        b, length, width = x.shape
        first, second, whole = DepthScale(width, name="depth")(t, x.dtype)
        dense = lambda features, name: nn.Dense(features, dtype=x.dtype, name=name)
        split = lambda a: a.reshape(b, length, self.heads, width // self.heads)
        q, k, v = map(split, jnp.split(dense(3 * width, "qkv")(Norm(name="norm1")(x)), 3, axis=-1))
        x = x + first * dense(width, "out")(attend(q, k, v))
        x = x + second * dense(width, "down")(
            nn.gelu(dense(4 * width, "up")(Norm(name="norm2")(x)))
        )
        return whole * x


@dataclasses.dataclass(frozen=True)
class _Select:
    """Layer i's block, which it shares with its phase, and its own head."""

    phase: tuple[int, ...]

    def __call__(self, params: PyTree, i: Any) -> PyTree:
        return {
            "block": take(params["blocks"], jnp.asarray(self.phase, jnp.int32)[i]),
            "head": take(params["heads"], i),
        }


@dataclasses.dataclass(frozen=True)
class _Apply:
    block: Block
    head: Head

    def __call__(self, weights: PyTree, i: Any, x: Array) -> tuple[Array, PyTree]:
        t = jnp.broadcast_to(i + 1, x.shape[:1])
        new: Any = self.block.apply({"params": weights["block"]}, x, t)
        logits = self.head.apply({"params": weights["head"]}, new)
        return new, {"logits": logits, "residual": relative_residual(x, new).astype(new.dtype)}


def block_recurrent(
    image: tuple[int, int, int],
    classes: int,
    counts: Sequence[int],
    *,
    patch: int,
    width: int,
    heads: int,
    stride: int | None = None,
    teacher: PyTree = None,
) -> Model:
    """k blocks in place of N: block j is applied counts[j] times, told by its index which
    application it is, with an exit each.

    (s1, s2, s3) = 1 + W2 silu(W1 t); x = x + s1 attention(norm(x)); x = x + s2 mlp(norm(x)); x = s3
    x, t = 1..N.

    Args:
      image, classes, patch, width, heads, stride: as in `vit`.
      counts: n_j of each phase; N is their sum (`dx.evaluation.phases(...).counts`).
      teacher: parameters of a `vit` of N blocks and the same sizes, whose embedding and exit heads
        `init` then copies; None to draw them.

    Returns:
      A `Model` of the states of `vit`: outputs `{"logits": [E, B, C], "residual": [E, B]}` with E =
      N, where the residual is the relative change that the layer made. Parameters: "embed",
      "blocks" `[k, ...]`, "heads" `[N, ...]`.

    Raises:
      ValueError, TypeError: a number below 1, no phases, `width` not a multiple of `heads`; a
        teacher of another depth.

    Example:
      >>> model = block_recurrent((8, 8, 1), 10, (3, 2), patch=4, width=8, heads=2)
      >>> model.depth, jax.tree.leaves(model.init(jax.random.key(0))["blocks"])[0].shape[0]
      (5, 2)

    Source: Raptor (the block-recurrent hypothesis). Deviations: the MLP is that of `vit` and not
      SwiGLU, no LayerScale, no
    registers; an exit after every layer.
    """
    counts, stride = tuple(counts), patch if stride is None else stride
    for k, n in enumerate(counts):
        positive_integer(n, f"counts[{k}]")
    for name, value in dict(
        classes=classes, patch=patch, width=width, heads=heads, stride=stride
    ).items():
        positive_integer(value, name)
    if not counts:
        raise ValueError("`counts` must hold at least one phase, got none")
    if width % heads:
        raise ValueError(f"`width` must be a multiple of the {heads} `heads`, got {width}")
    depth = sum(counts)
    if teacher is not None and (found := jax.tree.leaves(teacher["blocks"])[0].shape[0]) != depth:
        raise ValueError(
            f"`teacher` must have as many blocks as `counts` sums to, {depth}, got {found}"
        )
    embed, block, head = Embed(patch, stride, width), Block(heads), Head(classes)
    phase = tuple(int(j) for j in np.repeat(np.arange(len(counts)), counts))

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        given = (
            None
            if teacher is None
            else jax.tree.map(jnp.array, {"embed": teacher["embed"], **teacher["blocks"]})
        )
        first = initial(embed, keys[0], jnp.zeros((1, *image))) if given is None else given["embed"]
        tokens = jax.eval_shape(lambda p: embed.apply({"params": p}, jnp.zeros((1, *image))), first)
        drawn = jax.vmap(lambda k: block.init(k, jnp.zeros(tokens.shape), jnp.zeros(1))["params"])
        heads_of = initial_stack(head, keys[2], tokens, depth) if given is None else given["head"]
        return {
            "embed": first,
            "blocks": drawn(jax.random.split(keys[1], len(counts))),
            "heads": heads_of,
        }

    def begin(params: PyTree, images: Array) -> Array:
        check_input(images, image, "images")
        tokens: Any = embed.apply({"params": params["embed"]}, images)
        return tokens

    def steps(params: PyTree) -> Step:
        select = Partial(_Select(phase), {"blocks": params["blocks"], "heads": params["heads"]})
        return Step(select, Partial(_Apply(block, head)), depth=depth)

    return Model(init, begin, steps, depth, block_names(depth))
