"""D3: the i-th generated token runs fewer blocks than the one before, the same for every text."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import AnyArray, Array, HostArray, Int, PyTree, Rows
from dynexit.core.types import Criterion
from dynexit.criteria.combinators import count
from dynexit.decoding.exits.settings import Exits


def d3_depths(
    depth: int, alpha: float, tokens: int, start: int = 0, least: int = 1
) -> Int[HostArray, "tokens"]:
    """Blocks of each generated token, k_i = max(least, floor(N alpha^(i - start))), N before start.

    Args:
      depth: N.
      alpha: above 0, at most 1; 0.99 to 0.995 for texts of about 250 tokens.
      tokens: of the text, without the prompt.
      start: tokens at full depth before the depth falls, at least 0.
      least: blocks at least, in 1..N.

    Returns:
      int32 `[tokens]`, computed in float64.

    Raises:
      TypeError, ValueError: an argument out of range.

    Example:
      >>> d3_depths(32, 0.98, 51)[[0, 1, 2, 5, 10, 20, 50]].tolist()
      [32, 31, 30, 28, 26, 21, 11]

    Source: D3 (2025), arXiv 2503.08524.
    """
    positive_integer(depth, "depth")
    positive_integer(tokens, "tokens")
    if not 0 < alpha <= 1:
        raise ValueError(f"`alpha` must be above 0 and at most 1, got {alpha}")
    if not start >= 0:
        raise ValueError(f"`start` must be at least 0, got {start}")
    if not 1 <= least <= depth:
        raise ValueError(f"`least` must lie in 1..{depth}, got {least}")
    power = np.maximum(np.arange(tokens) - start, 0).astype(np.float64)
    return np.maximum(np.floor(depth * np.float64(alpha) ** power), least).astype(np.int32)


def d3_exits(
    depths: Int[HostArray, "tokens"], depth: int, after: tuple[int, ...] | None = None
) -> Exits:
    """Decoding in which each generated token exits at a given depth, for `dx.decoding.generate`.

    Token i exits at the first exit that is not above its depth k_i. Depths that fall, as those of
    `d3_depths`, need no keys and values in the blocks that a token has not run: no later token
    runs these blocks. Where depths rise, later tokens do not attend to it there.

    Args:
      depths: k, integers `[tokens]` in 1..N, falling or rising; `tokens` is the `max_tokens` of
        `generate`. A row with another `max_tokens` takes the depth at the same fraction of its
        text.
      depth: N, of the model.
      after: the exits; None for every depth below N among `depths`. With equal `after` and
        `tokens`, other depths compile nothing.

    Returns:
      `dx.decoding.Exits` with the rule "skip" of the cache.

    Raises:
      TypeError: depths that are not integers.
      ValueError: depths of a wrong shape or out of range, or all N while `after` is None.

    Example:
      >>> import dynexit as dx, jax
      >>> model = dx.models.CausalLM(width=16, depth=3, heads=2).build(dx.Tokens(50), 50)
      >>> exits = d3_exits(d3_depths(3, 0.7, 6), depth=3)
      >>> params = model.init(jax.random.key(0))
      >>> dx.decoding.generate(model, params, [[1, 2]], 6, exits=exits).depth[0].tolist()
      [3, 2, 1, 1, 1, 1]

    Source: D3 (2025), arXiv 2503.08524. Deviation: the last blocks are skipped, so that a
      token has one exit, where D3 skips blocks in the middle; the network must have trained exits.
    """
    table = np.asarray(depths)
    if table.ndim != 1 or not table.size:
        raise ValueError(f"`depths` must have shape [tokens], got shape {table.shape}")
    count(table, "depths")
    if table.max() > depth:
        raise ValueError(f"`depths` must lie in 1..{depth}, got {table.max()}")
    if after is None:
        after = tuple(sorted({int(k) for k in table if k < depth}))
        if not after:
            raise ValueError("`after` must be given where all `depths` are the model's depth")
    bounds = jnp.array([*after, depth], jnp.int32)
    decide = Partial(_deep_enough, jnp.asarray(table, jnp.int32), bounds)
    return Exits(after, Criterion(_read_time, decide, exits=len(after) + 1), "skip")


def _read_time(i: Array, output: Rows, memory: PyTree) -> tuple[Array, PyTree]:
    return output["time"], memory


def _deep_enough(
    table: Int[AnyArray, "tokens"], bounds: Array, i: Array, time: Array, memory: PyTree
) -> tuple[Array, PyTree]:
    token = jnp.round(time * len(table)).astype(jnp.int32)
    return bounds[i] >= jnp.take(table, token, mode="clip"), memory
