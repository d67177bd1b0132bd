"""Recurrent depth: a random number of iterations in training, exit by divergence."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.checks import entries, positive_integer
from dynexit.core.labels import share
from dynexit.core.shapes import AnyArray, Array, Float, Int, Key, PyTree
from dynexit.core.stages import one_depth
from dynexit.core.types import Criterion, Method, Model
from dynexit.engine.gradients.truncated import run_truncated
from dynexit.engine.steps import every_iteration
from dynexit.methods.answers import logits_of, predict, row_means
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

THRESHOLDS = (0.0, *(10.0**e for e in np.arange(-6.0, 0.1, 0.25)))  # 0 is never passed: full depth
RULES = {"divergence": criteria.divergence_below, "latent": criteria.residual_below}


def recurrent_depth(
    mean: float,
    truncate: int = 8,
    sigma: float = 0.5,
    noise: float = 1.0,
    thresholds: Sequence[float] | Float[AnyArray, "K"] = THRESHOLDS,
    rule: str = "divergence",
    score: Callable[[Any, Any], Any] = share,
) -> Method:
    """Huginn's training, and an exit by the divergence of answers or the change of the state.

    Training: r = Poisson(LogNormal(ln mean - sigma^2 / 2, sigma)) + 1 iterations, one draw per
    update, of which the last min(r, truncate) carry gradients. The loss is the cross-entropy of the
    last answer alone.

    Inference: a row exits once KL(p_{i-1} || p_i) < t at every place, or
    ||s_i - s_{i-1}|| / ||s_i|| < t. With `places.per_token` each place exits by the same criterion
    on its own.

    Args:
      mean: of the rate; r is 1 higher on average.
      truncate: k.
      sigma: of the log-normal distribution.
      noise: the state starts at sqrt(D) n with n normal, cut at 3 deviations of sqrt(2 / (5 D)) x
        noise each; 0 for zeros.
      thresholds: candidates for t, in nats or relative, `[K]`, at least 0; 0, full depth, is added.
      rule: "divergence" of the answers, or "latent", of the state.
      score: what accuracy counts, see `Method`; by default the places, as for a language model.

    Returns:
      `Method`. The model is weight-tied with the state's entries "input" and "h"
      (`dx.models.RecurrentDepth`), outputs logits `[E, B, ..., C]` or a dict of them and, for the
      latent rule, "residual" `[E, B, ...]`. An operating point is `{"threshold": []}`.
      Metrics: iterations (r), loss_last, accuracy.

    Raises:
      TypeError, ValueError: `mean`, `sigma` or `noise` out of range, `truncate` below 1,
        `thresholds` negative, an unknown `rule`.

    Source: Geiping et al. 2025, arXiv 2502.05171 and its released code, mean 32 and k 8 there.
      Deviations: r never exceeds the model's steps, so that every loop has a limit; the rule is
      tested at every place of a row, not at one token while decoding.
    """
    positive_integer(truncate, "truncate")
    for name, value, low in (("mean", mean, 1e-9), ("sigma", sigma, 0.0), ("noise", noise, 0.0)):
        if not value >= low:
            raise ValueError(f"`{name}` must be {'above' if low else 'at least'} 0, got {value}")
    if rule not in RULES:
        raise ValueError(f"`rule` must be {' or '.join(map(repr, RULES))}, got {rule!r}")
    candidates = levels(thresholds, full=0.0, low=0.0)

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        first, second = jax.random.split(key)
        r = jnp.minimum(sampled_steps(first, mean, sigma), one_depth(model))
        step, state = every_iteration(model.steps(params)), model.embed(params, inputs)
        entries(state, ("h", "input"), "a weight-tied model, such as dx.models.RecurrentDepth")
        if noise:
            state = {**state, "h": noise * first_state(second, state["h"])}
        most = min(truncate, one_depth(model))
        kept = jnp.minimum(r, most)
        _, output = run_truncated(step, state, r - kept, kept, most, injected=("input",))
        losses = multi_exit_cross_entropy(logits_of(output)[None], labels)[0]
        metrics = {
            "iterations": r,
            "loss_last": losses,
            "accuracy": score(predict(output), labels),
        }
        return losses, row_means(metrics, labels)

    def criterion(operating_point: PyTree) -> Criterion:
        return RULES[rule](operating_point["threshold"])

    return Method(None, criterion, candidates, predict, loss, score)


def sampled_steps(key: Key[Array, ""], mean: float, sigma: float = 0.5) -> Int[Array, ""]:
    """Draws r = Poisson(rate) + 1 with rate ~ LogNormal(ln mean - sigma^2 / 2, sigma).

    The mean E[r] is mean + 1.

    Args:
      key: consumed; the same on all devices, so that all draw the same r.
      mean: of the rate.
      sigma: of its logarithm.

    Returns:
      int32 `[]`, at least 1.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 20_000)
      >>> draws = jax.vmap(lambda key: sampled_steps(key, 32.0))(keys)
      >>> print(f"{draws.mean():.0f} {draws.std():.0f}")
      33 18

    Source: Geiping et al. 2025, section 3.3.
    """
    first, second = jax.random.split(key)
    rate = jnp.exp(math.log(mean) - sigma**2 / 2 + sigma * jax.random.normal(first))
    return jax.random.poisson(second, rate).astype(jnp.int32) + 1


def first_state(key: Key[Array, ""], like: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """sqrt(D) n, n ~ N(0, 2 / (5 D)) cut at 3 deviations, in the shape `[..., D]` of `like`.

    The key is consumed.
    """
    return math.sqrt(2 / 5) * jax.random.truncated_normal(key, -3.0, 3.0, like.shape).astype(
        like.dtype
    )
