"""LayerSkip: layer dropout and early-exit losses, so that one output head reads every layer."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import positive_integer
from dynexit.core.labels import share
from dynexit.core.shapes import Array, Bool, Float, Key, PyTree
from dynexit.core.stages import one_depth
from dynexit.core.types import Candidates, Method, Model
from dynexit.methods.answers import row_means
from dynexit.methods.exits.confidence_exits import confidence_exits
from dynexit.methods.exits.fixed_depth import fixed_depth
from dynexit.methods.language.exit_losses import check_language_model, exit_losses
from dynexit.objectives import weights
from dynexit.objectives.multi_exit import weighted
from dynexit.transforms.stochastic_depth import dropped_blocks

Schedule = Literal["rising", "constant"]
Curve = Literal["paper", "sum", "linear", "uniform"]
Curriculum = Literal["rotational", "gradual", "all"]
Rule = Literal["confidence", "depth"]


def layerskip(
    dropout: float = 0.1,
    schedule: Schedule = "rising",
    curve: Curve = "paper",
    early_scale: float = 0.2,
    curriculum: Curriculum = "rotational",
    rotation: int = 4,
    rule: Rule = "depth",
    shared: int = 40,
) -> Method:
    """LayerSkip's training, and an exit at one depth for all rows or by confidence.

    Training: block l of N is dropped for a row with probability S(t) D(l) p, see `drop_rates`. The
    loss is L_b = sum_e w_e CE_eb over the exits that the curriculum has on, see `exits_on` and
    `exit_weights`. All exits share the final norm and the output matrix.

    Inference: "depth", all rows exit at one exit, whose depth is calibrated; "confidence", a row
    exits once max_c softmax(z_e / T_e)_c > t_e at every place. The same parameters draft and verify
    tokens in self-speculative decoding.

    Args:
      dropout: p, the rate of the last block at the end, at least 0 and below 1.
      schedule: S(t): "rising" from 0 for training from scratch, or "constant" for a trained model.
      curve: weights of the exits, see `exit_weights`.
      early_scale: factor of the early exits, at least 0; 0 trains the last exit alone.
      curriculum: which exits are on, see `exits_on`.
      rotation: R of the rotational curriculum.
      rule: "depth" or "confidence".
      shared: candidates with one threshold for all exits, of the rule "confidence".

    Returns:
      `Method`, for models with a decoder and exits with "hidden" (`dx.models.CausalLM`). An
      operating point is `{"depth": []}`, or `{"threshold": [E-1], "temperature": [E]}`. Metrics:
      loss_exit_last; loss_exit_early, the mean over the early exits that are on; exits_on, their
      number; kept_blocks, the fraction of blocks kept. Accuracy counts places.

    Raises:
      TypeError, ValueError: an argument out of range; from the loss, a model without a decoder.

    Example:
      >>> import dynexit as dx
      >>> model = dx.models.CausalLM(width=16, depth=4, heads=2).build(dx.Tokens(50), 50)
      >>> params, tokens = model.init(jax.random.key(0)), jnp.ones((2, 8), jnp.int32)
      >>> loss, metrics = layerskip().loss(
      ...     model, params, tokens, tokens, jax.random.key(1), jnp.float32(0.5)
      ... )
      >>> loss.shape, sorted(metrics)
      ((2,), ['exits_on', 'kept_blocks', 'loss_exit_early', 'loss_exit_last'])

    Source: Elhoushi et al. 2024, arXiv 2404.16710, and torchtune's recipe. Deviation: the offset of
      the rotation is drawn at every update, where the paper moves it by one.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be at least 0 and below 1, got {dropout}")
    positive_integer(rotation, "rotation")
    _choice("schedule", schedule, ("rising", "constant"))
    _choice("curve", curve, ("paper", "sum", "linear", "uniform"))
    _choice("curriculum", curriculum, ("rotational", "gradual", "all"))
    _choice("rule", rule, ("depth", "confidence"))
    exit_weights(jnp.ones(2, bool), curve, early_scale)  # refuses a wrong scale here

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        check_language_model(model)
        depth, step = one_depth(model), model.steps(params)
        first, second = jax.random.split(key)
        kept = jnp.ones((depth, len(labels)), bool)
        if dropout:
            rates = drop_rates(depth, dropout, progress if schedule == "rising" else 1.0)
            kept = jax.random.bernoulli(first, 1 - rates[:, None], kept.shape)
            step = dropped_blocks(step, kept, jnp.ones(depth))
        on = exits_on(depth, curriculum, progress, rotation, second)
        on = on if early_scale else jnp.arange(depth) == depth - 1
        losses = exit_losses(model, params, inputs, labels, on, step)
        early = on[:-1].sum(dtype=jnp.float32)
        metrics = {
            "loss_exit_last": losses[-1],
            "loss_exit_early": losses[:-1].sum(axis=0) / jnp.maximum(early, 1),
            "exits_on": early + 1,
            "kept_blocks": kept.mean(dtype=jnp.float32),
        }
        return weighted(losses, exit_weights(on, curve, early_scale)), row_means(metrics, labels)

    if rule == "confidence":
        inner = confidence_exits(shared=shared)
    else:
        inner = fixed_depth()
        points = lambda records, fitted, costs: {"depth": np.arange(1, len(costs) + 1)}
        inner = inner._replace(candidates=Candidates(inner.candidates.full, points))
    return inner._replace(objective=None, loss=loss, score=share)


def drop_rates(depth: int, dropout: float, progress: float | Float[Array, ""]) -> Float[Array, "N"]:
    """The probability with which each block is dropped, S(t) D(l) p.

    D(l) = 2^(l / (N - 1)) - 1 rises from 0 to 1 over the depth, and S(t) = 2^t - 1 over the
    training.

    Args:
      depth: N.
      dropout: p.
      progress: t, the fraction of training done; 1 for a constant rate.

    Returns:
      float32 `[N]`; a single block is never dropped.

    Example:
      >>> [round(p, 4) for p in drop_rates(8, 1.0, 1.0).tolist()]
      [0.0, 0.1041, 0.219, 0.3459, 0.486, 0.6407, 0.8114, 1.0]

    Source: Elhoushi et al. 2024, section 4.1.1.
    """
    over_depth = jnp.exp2(jnp.arange(depth, dtype=jnp.float32) / max(depth - 1, 1)) - 1
    return (jnp.exp2(jnp.asarray(progress, jnp.float32)) - 1) * dropout * over_depth


def exits_on(
    exits: int,
    curriculum: Curriculum,
    progress: Float[Array, ""],
    rotation: int,
    key: Key[Array, ""],
) -> Bool[Array, "E"]:
    """Which exits have a loss in an update; the last always has one.

    "rotational": every R-th exit, from an offset that is drawn, so (E - 1) / R early exits on
    average. "gradual": exit l once t >= (E - l) / (2 E), from the top down. "all": all.

    Args:
      exits: E.
      curriculum: one of the three.
      progress: t, the fraction of training done.
      rotation: R.
      key: consumed.

    Returns:
      bool `[E]`.

    Example:
      >>> exits_on(4, "gradual", jnp.float32(0.3), 1, jax.random.key(0)).tolist()
      [False, False, True, True]

    Source: Elhoushi et al. 2024, section 4.1.2, and torchtune's `early_exit_loss.py`.
    """
    exit = jnp.arange(exits)
    if curriculum == "rotational":
        on = exit % rotation == jax.random.randint(key, (), 0, rotation)
    elif curriculum == "gradual":
        on = progress >= 0.5 * (exits - exit.astype(jnp.float32)) / exits
    else:
        on = jnp.ones(exits, bool)
    return on | (exit == exits - 1)


def exit_weights(
    on: Bool[Array, "E"], curve: Curve = "paper", early_scale: float = 0.2
) -> Float[Array, "E"]:
    """Weights of the exits that are on; they sum to 1.

    "paper": those of `dx.objectives.weights.layerskip`. The others are torchtune's, with the early
    exits times the scale s: "uniform" 1, "linear" the number of the exit from 1, "sum" the sum of
    these numbers over the exits that are on, up to the exit.

    Args:
      on: bool `[E]`, the last True.
      curve: one of the four.
      early_scale: s, at least 0.

    Returns:
      float32 `[E]`, 0 where an exit is off.

    Raises:
      ValueError: s is negative.

    Example:
      >>> round(float(exit_weights(jnp.ones(8, bool), "sum", 0.2)[-1]), 4)
      0.6818

    Source: Elhoushi et al. 2024, equations 4 and 5, and torchtune's `early_exit_loss.py`, which
      differ.
    """
    exits, c = len(on), on.astype(jnp.float32)
    if curve == "paper":
        found = c * weights.layerskip(exits, early_scale)
    else:
        if not early_scale >= 0:
            raise ValueError(f"`early_scale` must be at least 0, got {early_scale}")
        number = jnp.arange(1, exits + 1, dtype=jnp.float32)
        f = {"uniform": jnp.ones(exits), "linear": number, "sum": jnp.cumsum(c * number)}[curve]
        scale = jnp.full(exits, early_scale, jnp.float32).at[-1].set(1.0)
        found = c * f * scale
    return found / found.sum()


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}")
