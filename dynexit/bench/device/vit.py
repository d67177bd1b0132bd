"""The network of the device suite: blocks in the shape of ViT-B/16, in plain JAX, with exits.

A block is pre-norm attention and an MLP, without biases and without learned scales. An exit is a
normalisation and a linear classifier on the first token.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.shapes import AnyArray, Array, Float, Int, PyTree, Rows
from dynexit.core.types import Step
from dynexit.criteria.confidence import at_depth
from dynexit.engine.run import run_until
from dynexit.engine.steps import stacked_step, tied_step

Weights: TypeAlias = dict[str, Array]


class Shape(NamedTuple):
    """The sizes of the network.

    Attributes:
      width: channels of a token.
      heads: attention heads.
      hidden: channels inside the MLP.
      tokens: tokens per row.
      depth: blocks.
      classes: outputs of an exit.
      dtype: of weights and states.
    """

    width: int
    heads: int
    hidden: int
    tokens: int
    depth: int
    classes: int
    dtype: str


VIT_B16 = Shape(768, 12, 3072, 197, 12, 1000, "bfloat16")
SMALL = Shape(32, 2, 64, 9, 6, 10, "float32")


class Problem(NamedTuple):
    """A network with random weights and a batch.

    Attributes:
      shape: the sizes.
      params: weights, leaves `[depth, ...]`.
      state: `[B, L, D]`.
    """

    shape: Shape
    params: Weights
    state: Float[Array, "B L D"]

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return self.state.shape[0]


def problem(shape: Shape, batch: int) -> Problem:
    """A `Problem` with random weights and rows, a pure function of the arguments."""
    random = np.random.default_rng(batch).standard_normal
    state = random((batch, shape.tokens, shape.width), np.float32)
    return Problem(shape, _weights(shape), jnp.asarray(state).astype(shape.dtype))


@functools.lru_cache(maxsize=1)
def _weights(shape: Shape) -> Weights:
    """Random weights from NumPy, since compiling a random generator takes longer."""
    width, hidden = shape.width, shape.hidden
    sizes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, hidden)}
    sizes |= {"down": (hidden, width), "head": (width, shape.classes)}
    random = np.random.default_rng(0).standard_normal
    scaled = lambda size: random((shape.depth, *size), np.float32) / math.sqrt(size[0])
    return {name: jnp.asarray(scaled(size)).astype(shape.dtype) for name, size in sizes.items()}


def norm(x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """Layer normalisation in float32, without scale and bias."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    return (wide * lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def block(
    heads: int, attention: Any, p: Weights, h: Float[Array, "b L D"]
) -> Float[Array, "b L D"]:
    """One transformer block.

    Args:
      heads: attention heads.
      attention: `implementation` of `jax.nn.dot_product_attention`.
      p: weights of this block.
      h: `[b, L, D]`.

    Returns:
      The next state, as `h`.
    """
    split = lambda x: x.reshape(*x.shape[:2], heads, -1)
    q, k, v = map(split, jnp.split(norm(h) @ p["qkv"], 3, axis=-1))
    mixed = jax.nn.dot_product_attention(q, k, v, implementation=attention)
    h = h + mixed.reshape(h.shape) @ p["out"]
    return h + jax.nn.gelu(norm(h) @ p["up"], approximate=True) @ p["down"]


def head(p: Weights, h: Float[Array, "b L D"]) -> Float[Array, "b C"]:
    """The exit: float32 `[b, C]`."""
    return (norm(h[:, 0]) @ p["head"]).astype(jnp.float32)


@functools.cache
def block_of(heads: int, attention: Any = None) -> Callable[[PyTree, Rows], Rows]:
    """`block(p, h)`; the same function for the same arguments, so that programs are reused."""
    return functools.partial(block, heads, attention)


def stacked(shape: Shape, params: PyTree, blocks: int = 1, attention: Any = None) -> Step:
    """The network with an exit after every `blocks` blocks."""
    return stacked_step(block_of(shape.heads, attention), head, params, blocks)


def tied(shape: Shape, params: PyTree) -> Step:
    """The network that repeats its first block."""
    first = jax.tree.map(lambda a: a[0], params)
    return tied_step(block_of(shape.heads), head, first)


def run_with(
    step: Step,
    state: Float[Array, "B L D"],
    depths: Int[Array, "B"],
    depth: int,
    executor: Any,
    tile: Any = None,
) -> tuple[Float[Array, "B C"], Int[Array, "B"], Int[Array, ""]]:
    """`dx.run_until` at prescribed depths.

    Args:
      step: with an exit after every block.
      state: `[B, L, D]`.
      depths: int32 `[B]`, depth at which each row exits.
      depth: number of blocks.
      executor, tile: as for `dx.run_until`.

    Returns:
      Outputs `[B, C]`, exit depths int32 `[B]`, rows executed int32 `[]`.
    """
    rule = at_depth(depths)
    halted = run_until(step, state, depth, rule, executor, tile, False)
    return halted.output, halted.exit_depth, halted.rows_executed


def at_exits(
    outputs: Float[AnyArray, "E B C"], depths: Int[np.ndarray, "B"]
) -> Float[np.ndarray, "B C"]:
    """The rows' outputs at their exits.

    Args:
      outputs: `[E, B, C]`, from `dx.run_all` with an exit after every block.
      depths: int32 `[B]`.

    Returns:
      float32 `[B, C]`.
    """
    return np.asarray(outputs, np.float32)[depths - 1, np.arange(len(depths))]


def tolerance(dtype: str) -> float:
    """Allowed relative error; float32 products have full precision only on a CPU."""
    return 2e-3 if dtype == "float32" and jax.default_backend() == "cpu" else 0.1


def disagreement(found: Float[AnyArray, "*s"], expected: Float[np.ndarray, "*s"]) -> float:
    """Largest difference relative to the largest expected entry; NaN if any is not finite."""
    found = np.asarray(found, np.float32)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
