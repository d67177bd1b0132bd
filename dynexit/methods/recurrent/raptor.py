"""Raptor: a few recurrent blocks distilled from a deep network; rows exit where a phase settles."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.shapes import AnyArray, Array, Bool, Float, PyTree
from dynexit.core.types import Candidates, Criterion, Method, Model, Step
from dynexit.engine.run import run_all
from dynexit.methods.answers import accuracy, logits_of, predict, row_means
from dynexit.models.features import features
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

# 0 is never passed: full depth
THRESHOLDS = (0.0, *(float(10.0**e) for e in np.arange(-2.5, 0.6, 0.125)))


def raptor(
    teacher: Model,
    teacher_params: PyTree,
    counts: Sequence[int],
    forcing: float = 0.25,
    joint: float = 0.5,
    labels: float = 0.0,
    thresholds: Sequence[float] | Float[AnyArray, "K"] = THRESHOLDS,
) -> Method:
    """Distils all states of a teacher into recurrent blocks, with teacher forcing, then without.

    Training: with teacher states a_0..a_N, TF = mean_l d(B(a_{l-1}, l), a_l) and AR = mean_l d(x_l,
    a_l), with x_l = B(x_{l-1}, l) from x_s = a_s at the start s of each phase, and later from
    x_0 = a_0 alone. d is the mean square. L = lam TF + (1 - lam) AR + labels CE(x_N).

    Inference: a row exits once a layer changes the state by less than t of its size,
    ||x_l - x_{l-1}|| / ||x_l|| < t. The first layer of a phase is excluded, because its change says
    nothing of convergence.

    Args:
      teacher, teacher_params: a homogeneous network of N blocks whose state is an array `[B, ...,
        D]`; constants.
      counts: n_j of each phase, sum N.
      forcing: fraction of the training over which lam falls from 1 to 0.
      joint: fraction of the training after which the rollout runs through the phases (the second
        stage of the paper).
      labels: weight of the last exit's cross entropy on a rollout from a_0.
      thresholds: candidates for t, `[K]`, at least 0; 0, full depth, is added.

    Returns:
      `Method`. The model is `dx.models.BlockRecurrent(..., counts)`. An operating point is
      `{"threshold": [E-1]}`. Metrics: teacher_forcing, autoregressive, forced (lam), accuracy of
      the last exit of the rollout.

    Raises:
      ValueError: `counts` that do not sum to the teacher's depth, `forcing` or `joint` outside
        0..1, `labels` negative, `thresholds` negative.

    Source: Raptor, whose two stages are two runs: each block alone on its phase, then all jointly.
      Deviations: one run, in which all blocks of the first stage are trained at once; no
      weights for token groups; the exit is not in the paper, which saves no compute.
    """
    counts = tuple(counts)
    if not isinstance(teacher.depth, int) or sum(counts) != teacher.depth:
        raise ValueError(
            f"`counts` must sum to the depth of `teacher`, {teacher.depth}, got {list(counts)}"
        )
    for name, value in dict(forcing=forcing, joint=joint).items():
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in 0..1, got {value}")
    if not labels >= 0:
        raise ValueError(f"`labels` must be at least 0, got {labels}")
    shared = levels(thresholds, full=0.0, low=0.0)
    starts = np.cumsum((0, *counts[:-1]))
    first = np.isin(np.arange(sum(counts)), starts)

    def loss(
        model: Model, params: PyTree, inputs: PyTree, wanted: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        if model.depth != len(first):
            raise ValueError(
                f"`model` must have the {len(first)} layers that `counts` sums to, "
                f"got a depth of {model.depth}"
            )
        given = [
            teacher.embed(teacher_params, inputs),
            *features(teacher, teacher_params, inputs).values(),
        ]
        states, step = lax.stop_gradient(jnp.stack(given)), model.steps(params)
        forced, alone = (
            one_step_errors(step, states),
            rollout(step, states, first & (progress < joint)),
        )
        lam = teacher_forcing_weight(progress, forcing)
        losses = lam * forced + (1 - lam) * squared(alone["state"], states[1:]).mean(0)
        if labels:
            last = rollout(step, states, np.arange(len(first)) == 0)["output"]
            losses = losses + labels * multi_exit_cross_entropy(logits_of(last)[-1:], wanted)[0]
        metrics = {
            "teacher_forcing": forced,
            "autoregressive": squared(alone["state"], states[1:]).mean(0),
            "forced": lam,
            "accuracy": accuracy(jax.tree.map(lambda a: a[-1], alone["output"]), wanted),
        }
        return losses, row_means(metrics, wanted)

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.residual_below(operating_point["threshold"])

    def per_exit(thresholds: PyTree) -> PyTree:
        return {
            "threshold": np.where(
                first[:-1], np.float32(0), np.asarray(thresholds, np.float32)[..., None]
            )
        }

    candidates = Candidates(
        lambda exits, fitted: per_exit(0.0),
        lambda records, fitted, costs: per_exit(shared.points(records, fitted, costs)["threshold"]),
    )
    return Method(None, criterion, candidates, predict, loss)


def teacher_forcing_weight(progress: Float[Array, ""], forcing: float = 0.25) -> Float[Array, ""]:
    """lam, from 1 to 0 over the first `forcing` of the training, float32 `[]`.

    Example:
      >>> [float(teacher_forcing_weight(jnp.float32(p))) for p in (0.0, 0.125, 0.25, 1.0)]
      [1.0, 0.5, 0.0, 0.0]
    """
    return jnp.clip(1 - progress / forcing, 0.0, 1.0) if forcing else jnp.zeros_like(progress)


def one_step_errors(step: Step, states: Float[Array, "_ B ..."]) -> Float[Array, "B"]:
    """Teacher forcing: mean_l d(B(a_{l-1}, l), a_l), float32 `[B]`; a is `[N + 1, B, ..., D]`."""
    layers = jnp.arange(len(states) - 1, dtype=jnp.int32)
    made = jax.vmap(lambda i, state: step.apply(step.select(i), i, state)[0])(layers, states[:-1])
    return squared(made, states[1:]).mean(0)


def rollout(
    step: Step, states: Float[Array, "_ B ..."], given: Bool[AnyArray, "N"]
) -> dict[str, PyTree]:
    """The student's states, reset to the teacher's before the layers that are `given`, bool `[N]`.

    Returns:
      `{"state": x_1..x_N [N, B, ..., D], "output": leaves [N, B, ...]}`.
    """

    def select(i: Any) -> PyTree:
        return step.select(i), states[i], jnp.asarray(given)[i]

    def apply(weights: PyTree, i: Any, state: Array) -> tuple[Array, PyTree]:
        own, teachers, from_teacher = weights
        state, output = step.apply(own, i, jnp.where(from_teacher, teachers, state))
        return state, {"state": state, "output": output}

    return run_all(Step(select, apply), states[0], len(states) - 1)


def squared(a: Float[Array, "N B *rest"], b: Float[Array, "N B *rest"]) -> Float[Array, "N B"]:
    """The mean square of a difference over all axes but the first two, float32 `[N, B]`."""
    moved = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32))
    return moved.mean(axis=tuple(range(2, moved.ndim)))
