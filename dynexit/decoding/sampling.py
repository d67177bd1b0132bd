"""How the next token is chosen from logits: greedy, or drawn from a filtered distribution."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, Key
from dynexit.layers.norms import wide


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    p = softmax(z / temperature) restricted to the `top_k` largest, then to the smallest set of the
    largest whose mass reaches `top_p`, then to those of at least `min_p` times the largest.

    Example:
      >>> Sampling(temperature=0.8, top_p=0.9).validate()
      []

    Source: Holtzman et al. 2020, arXiv 1904.09751, top-p; Fan et al. 2018, arXiv 1805.04833, top-k;
      Nguyen et al. 2024, arXiv 2407.01082, min-p; Keskar et al. 2019, arXiv 1909.05858, penalty.
    """

    temperature: float = 1.0
    """0 for the most probable token"""
    top_k: int = 0
    """0 for all tokens"""
    top_p: float = 1.0
    """in 0..1, above 0"""
    min_p: float = 0.0
    """in 0..1"""
    repetition_penalty: float = 1.0
    """positive logits of tokens that occurred before are divided by it, others multiplied"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = []
        if not self.temperature >= 0:
            found.append(f"temperature must be at least 0, got {self.temperature}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            found.append(f"top_k must be an integer of at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p must lie above 0 and be at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            found.append(f"min_p must lie in 0..1, got {self.min_p}")
        if not self.repetition_penalty > 0:
            found.append(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        return found


GREEDY = Sampling(temperature=0.0)


def checked_samplings(sampling: Sampling | Sequence[Sampling], count: int) -> list[Sampling]:
    """How tokens are drawn for each of `count` prompts.

    Raises:
      ValueError: their number is wrong.

    Example:
      >>> len(checked_samplings(GREEDY, 3))
      3
    """
    samplings = [sampling] * count if isinstance(sampling, Sampling) else list(sampling)
    if len(samplings) != count:
        raise ValueError(
            f"`sampling` must be one or one for each of the {count} prompts, got {len(samplings)}"
        )
    return samplings


class Rules(NamedTuple):
    """The fields of `Sampling` for every row, `[B]` each."""

    temperature: Float[AnyArray, "B"]
    top_k: Int[AnyArray, "B"]
    top_p: Float[AnyArray, "B"]
    min_p: Float[AnyArray, "B"]
    penalty: Float[AnyArray, "B"]


class Uses(NamedTuple):
    """Which parts of the rules any row uses; the others are not compiled."""

    sampled: bool = False
    filtered: bool = False
    penalised: bool = False


def rules_of(samplings: list[Sampling]) -> tuple[Rules, Uses]:
    """The rules of several rows, and which parts they use.

    Example:
      >>> rules_of([GREEDY, Sampling(top_k=5)])[1]
      Uses(sampled=True, filtered=True, penalised=False)
    """
    column = lambda name, dtype: np.array([getattr(s, name) for s in samplings], dtype)
    rules = Rules(
        column("temperature", np.float32),
        column("top_k", np.int32),
        column("top_p", np.float32),
        column("min_p", np.float32),
        column("repetition_penalty", np.float32),
    )
    sampled = rules.temperature > 0
    filtered = (rules.top_k > 0) | (rules.top_p < 1) | (rules.min_p > 0)
    penalised = rules.penalty != 1
    return rules, Uses(bool(sampled.any()), bool((sampled & filtered).any()), bool(penalised.any()))


def penalised(
    logits: Float[Array, "b w V"], seen: Bool[Array, "b w V"], penalty: Float[AnyArray, "b"]
) -> Float[Array, "b w V"]:
    """Logits with the repetition penalty for the tokens that were seen.

    Example:
      >>> seen = jnp.array([[[True, True, False]]])
      >>> penalised(jnp.array([[[1.0, -1.0, 1.0]]]), seen, jnp.array([2.0])).tolist()
      [[[0.5, -2.0, 1.0]]]
    """
    by = jnp.asarray(penalty, logits.dtype)[:, None, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / by, logits * by), logits)


def probabilities(
    logits: Float[Array, "b w V"], rules: Rules, filtered: bool = True
) -> Float[Array, "b w V"]:
    """The distribution that tokens are drawn from, float32; one-hot at temperature 0.

    Args:
      logits: `[b, w, V]`.
      rules: of the b rows.
      filtered: whether any row has a filter.

    Example:
      >>> rules, _ = rules_of([Sampling(top_k=2)])
      >>> probabilities(jnp.array([[[0.0, 0.0, -1.0]]]), rules).tolist()
      [[[0.5, 0.5, 0.0]]]
    """
    row = lambda a: jnp.asarray(a)[:, None, None]
    z = wide(logits).astype(jnp.float32)
    best = jax.nn.one_hot(z.argmax(-1), z.shape[-1], dtype=jnp.float32)
    greedy = row(rules.temperature) <= 0
    z = z / jnp.where(greedy, 1.0, row(rules.temperature))
    if filtered:
        z = jnp.where(z >= _lowest(z, rules), z, -jnp.inf)
    return jnp.where(greedy, best, jax.nn.softmax(z))


def _lowest(z: Array, rules: Rules) -> Array:
    """The smallest logit that passes the filters, `[b, w, 1]`."""
    row = lambda a: jnp.asarray(a)[:, None, None]
    ordered = -jnp.sort(-z, axis=-1)
    rank = jnp.arange(z.shape[-1])[None, None]
    among = jnp.where((rank < row(rules.top_k)) | (row(rules.top_k) <= 0), ordered, -jnp.inf)
    p = jax.nn.softmax(among)
    kept = (jnp.cumsum(p, axis=-1) - p < row(rules.top_p)) & (p >= row(rules.min_p) * p[..., :1])
    kept = kept & (among > -jnp.inf)
    return jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)


def drawn(keys: Key[Array, "b w"], p: Float[Array, "b w V"]) -> Int[Array, "b w"]:
    """One token from each distribution, int32."""
    draw = jax.vmap(jax.vmap(jax.random.categorical))
    return draw(keys, jnp.log(p)).astype(jnp.int32)
