"""The networks of the benchmark: random blocks of several kinds, and sampled depths of rows."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.data import Tokens
from dynexit.core.shapes import Array, Int, PyTree, Rows
from dynexit.core.types import Step
from dynexit.engine.steps import stacked_step, tied_step
from dynexit.models.language.settings import CausalLM

HEAD = 64  # channels of an attention head
CLASSES = 10
VOCABULARY = 256  # of "language"
DISTRIBUTIONS = ("geometric", "uniform", "bimodal", "together")


class Cell(NamedTuple):
    """One network and batch.

    Attributes:
      block: "transformer", "tied" (a transformer with the same weights at every depth), "mixer",
        "conv" or "language" (a causal language model that scores whole sequences).
      width, tokens: D and L; for "conv" the tokens are a square image.
      depth: N.
      batch: B.
      dtype: "float32" or "bfloat16".
    """

    block: str
    width: int
    tokens: int
    depth: int
    batch: int
    dtype: str


class Problem(NamedTuple):
    """The network and the batch of a cell.

    Attributes:
      step: `step(params) -> Step`.
      params: weights; leaves `[N, ...]`, or `[...]` for "tied".
      state: `[B, L, D]`; for "language" the state of the model, leaves `[B, L, ...]`.
    """

    step: Callable[[PyTree], Step]
    params: PyTree
    state: Rows


def problem(cell: Cell, seed: int = 0) -> Problem:
    """Random weights and a random batch for a cell.

    A block preserves the scale of its input. Its head is a mean over tokens and a linear map, and
    for "language" the logits of every token, which are computed once a row.

    Args:
      cell: the sizes.
      seed: of the random numbers.

    Returns:
      A `Problem`.
    """
    if cell.block == "language":
        return _language(cell, seed)
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    layers = 1 if cell.block == "tied" else cell.depth
    weight = lambda *shape: (
        0.3 * jax.random.normal(next(keys), (layers, *shape)) * shape[-2] ** -0.5
    ).astype(cell.dtype)
    width = cell.width
    shapes = {
        "transformer": {
            "qkv": (width, 3 * width),
            "out": (width, width),
            "up": (width, 4 * width),
            "down": (4 * width, width),
        },
        "mixer": {
            "mix": (cell.tokens, cell.tokens),
            "up": (width, 4 * width),
            "down": (4 * width, width),
        },
        "conv": {"first": (3, 3, width, width), "second": (3, 3, width, width)},
    }["transformer" if cell.block == "tied" else cell.block]
    params = {name: weight(*shape) for name, shape in shapes.items()} | {
        "head": weight(width, CLASSES)
    }
    block = {"mixer": _mixer, "conv": _conv}.get(cell.block, _transformer)
    state = jax.random.normal(next(keys), (cell.batch, cell.tokens, width)).astype(cell.dtype)
    head = lambda p, h: h.mean(1) @ p["head"]
    if cell.block == "tied":
        return Problem(
            lambda p: tied_step(block, head, p), jax.tree.map(lambda a: a[0], params), state
        )
    return Problem(lambda p: stacked_step(block, head, p), params, state)


def draw(
    distribution: str, mean: float, depth: int, rows: int, seed: int = 0
) -> Int[np.ndarray, "B"]:
    """Samples the depths of rows from a distribution with a mean of about `mean` x N.

    Args:
      distribution: "geometric", truncated at N; "uniform", on an interval; "bimodal", 1 or N;
        "together", one depth for all rows.
      mean: mean depth as a fraction of N, above 0 and at most 1.
      depth: N.
      rows: B.
      seed: of the random numbers.

    Returns:
      int32 `[B]` in 1..N.
    """
    rng, wanted = np.random.default_rng(seed), max(1.0, mean * depth)
    if mean >= 1:
        return np.full(rows, depth, np.int32)
    if distribution == "geometric":
        # the mean of a geometric distribution clipped at N is (1 - (1 - p)^N) / p
        p = np.linspace(1e-4, 1.0, 20_000)
        drawn = rng.geometric(p[np.argmin(np.abs((1 - (1 - p) ** depth) / p - wanted))], rows)
    elif distribution == "uniform":
        reach = min(wanted - 1, depth - wanted)
        drawn = np.rint(rng.uniform(wanted - reach, wanted + reach, rows))
    elif distribution == "bimodal":
        drawn = np.where(rng.random(rows) < (depth - wanted) / max(1, depth - 1), 1, depth)
    else:
        drawn = np.full(rows, round(wanted))
    return np.clip(drawn, 1, depth).astype(np.int32)


def cells(
    blocks: Sequence[str],
    widths: Sequence[int],
    tokens: int,
    depths: Sequence[int],
    batches: Sequence[int],
    dtypes: Sequence[str],
) -> list[Cell]:
    """A cell for every combination of block, width, depth, batch and dtype."""
    return [
        Cell(b, w, tokens, n, size, t)
        for b, w, n, size, t in itertools.product(blocks, widths, depths, batches, dtypes)
    ]


def _language(cell: Cell, seed: int) -> Problem:
    settings = CausalLM(cell.width, cell.depth, max(1, cell.width // HEAD), context=cell.tokens)
    model = settings.build(Tokens(VOCABULARY), VOCABULARY)
    params = jax.tree.map(lambda a: a.astype(cell.dtype), model.init(jax.random.key(seed)))
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, (cell.batch, cell.tokens))
    return Problem(model.steps, params, model.embed(params, jnp.asarray(tokens, jnp.int32)))


def _norm(x: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def _mlp(p: PyTree, h: Array) -> Array:
    return h + jax.nn.gelu(_norm(h) @ p["up"]) @ p["down"]


def _transformer(p: PyTree, h: Array) -> Array:
    """Pre-norm attention and MLP without biases on `h` `[b, L, D]`."""
    heads = lambda x: x.reshape(*x.shape[:2], -1, HEAD)
    q, k, v = (heads(x) for x in jnp.split(_norm(h) @ p["qkv"], 3, -1))
    return _mlp(p, h + jax.nn.dot_product_attention(q, k, v).reshape(h.shape) @ p["out"])


def _mixer(p: PyTree, h: Array) -> Array:
    """A linear map over tokens and an MLP over channels."""
    return _mlp(p, h + jnp.einsum("bld,lm->bmd", _norm(h), p["mix"]))


def _conv(p: PyTree, h: Array) -> Array:
    """A residual block of two 3 x 3 convolutions; the tokens are a square image."""
    side = round(h.shape[1] ** 0.5)
    convolve = lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = _norm(h).reshape(h.shape[0], side, side, h.shape[2])
    return h + convolve(jax.nn.relu(convolve(x, p["first"])), p["second"]).reshape(h.shape)
