"""What the backbones share: norms in float32, Linen modules as pure functions, stacked initial
parameters.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.types import Array, PyTree


class Norm(nn.Module):
    """LayerNorm over the last axis, computed in float32 and returned in the type that came in."""

    @nn.compact
    def __call__(self, x):
        # Not forcing makes flax cast scale and bias too, to the float32 that x already is: bfloat16
        # parameters are welcome.
        norm = nn.LayerNorm(dtype=jnp.float32, force_float32_reductions=False)
        return norm(x.astype(jnp.float32)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Apply:
    """A Linen module as a pure function `(p, x)` that reads `p[part]`; equal modules are equal
    functions: nothing recompiles.
    """

    module: nn.Module
    part: str

    def __call__(self, p: PyTree, x: Any) -> Any:
        return self.module.apply({"params": p[self.part]}, x)


def attend(q: Array, k: Array, v: Array, seen: Array | None = None) -> Array:
    """softmax(q k / sqrt(d)) v for each head, all `[b, L, heads, d]`, as `[b, L, heads * d]`;
    weights in float32.

    `seen`, bool `[L, L]` or `[b, L, L]`, says which places (last axis) each place may look at; None
    is all.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    if seen is not None:
        scores = jnp.where(seen[..., None, :, :], scores, -jnp.inf)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores).astype(v.dtype), v)
    return mixed.reshape(*mixed.shape[:2], -1)


def initial(module: nn.Module, key: Array, example: PyTree) -> PyTree:
    """The module's parameters as a plain dict, for an example of its input (shapes suffice); the
    key is consumed.
    """
    variables = module.init(key, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example))
    return variables["params"]


def initial_stack(module: nn.Module, key: Array, example: PyTree, blocks: int) -> PyTree:
    """Parameters of `blocks` alike modules, leaves `[blocks, ...]`; the key is consumed."""
    return jax.vmap(lambda k: initial(module, k, example))(jax.random.split(key, blocks))


def block_names(count: int) -> tuple[str, ...]:
    """`block00`, `block01`, ..."""
    return tuple(f"block{i:02d}" for i in range(count))


def check_input(inputs: Any, shape: Sequence[int], what: str) -> None:
    """Refuses inputs of another shape or of integers.

    Raises:
      ValueError: the shape is not `[B, *shape]`.
      TypeError: the inputs are not floating point.
    """
    if jnp.shape(inputs)[1:] != tuple(shape) or jnp.ndim(inputs) != len(shape) + 1:
        raise ValueError(
            f"`inputs` must be {what} of shape [B, {', '.join(map(str, shape))}], got {list(jnp.shape(inputs))}"
        )
    if not jnp.issubdtype(jnp.result_type(inputs), jnp.floating):
        raise TypeError(
            f"`inputs` must be floating point, got {jnp.result_type(inputs)}; scale them first (Experiment.prepare)"
        )
