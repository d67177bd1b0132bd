"""Segments: deep supervision of a recursive network, which learns when its answer is right."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.checks import entries, positive_integer
from dynexit.core.labels import exact, rows_counted
from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, PyTree
from dynexit.core.stages import one_depth
from dynexit.core.types import Criterion, Method, Model, Step
from dynexit.engine.run import run_all
from dynexit.methods.answers import predict, row_means
from dynexit.methods.recurrent.segment_slots import (
    Answer,
    binary_cross_entropy,
    least_segments,
    segment_slots,
)
from dynexit.objectives.multi_exit import mean_over_rows, multi_exit_cross_entropy
from dynexit.objectives.stablemax import stablemax_cross_entropy

Rule = Literal["right", "settled"]
Loss = Literal["softmax", "stablemax"]
THRESHOLDS = {
    "right": (
        0.01,
        0.02,
        *(j / 20 for j in range(1, 20)),
        0.98,
        0.99,
        0.995,
        0.998,
        0.999,
        1.0,
    ),  # 1 is never passed
    "settled": (0.0, *(10.0**e for e in np.arange(-4.0, 0.01, 0.125))),  # no change is below 0
}
FULL_DEPTH = {"right": 1.0, "settled": 0.0}


def segments(
    most: int,
    explore: float = 0.1,
    halting_weight: float = 0.5,
    loss: Loss = "softmax",
    rule: Rule = "right",
    thresholds: Sequence[float] | Float[AnyArray, "K"] | None = None,
    refill: bool = False,
) -> Method:
    """Deep supervision over segments, with a halting logit that learns whether the answer is right.

    Training: S consecutive segments with no gradient from one to the one before. At each,
    L_sb = CE_sb + w BCE(q_sb, right_sb), with the CE averaged over places. A row halts once q > 0
    and is left out of the loss from then on; with probability `explore` it does not halt before m
    segments, m ~ U{2..S}. The loss is the mean over all segments that rows took:
    L_b = sum_s live_sb L_sb / mean_b sum_s live_sb. With `refill` an update is one segment of every
    slot, and a new row replaces a halted one.

    Inference: with "right" a row exits once sigmoid(q) > t; with "settled" it exits once
    ||z - z'|| / ||z|| < t over a segment.

    Args:
      most: S, segments in training; the model may have more.
      explore: in 0..1, probability that a row does not halt before a drawn number of segments.
      halting_weight: w, at least 0.
      loss: "softmax", or "stablemax" as in the authors' code.
      rule: "right" or "settled", the exit of a row at inference.
      thresholds: candidates for t, `[K]`, in 0..1; full depth, 1 for "right" and 0 for "settled",
        is added. None for `THRESHOLDS[rule]`.
      refill: train in slots that persist over batches (`segment_slots`, which has its own metrics),
        so that no segment is computed for halted rows; an update then costs one segment and not S.

    Returns:
      `Method`. The model's state has the entries "input", which keeps its gradient, and others,
      which are detached before every segment; its outputs have "logits" `[E, B, ..., C]`,
      "halt_logit" `[E, B]` and, for "settled", "change" `[E, B]` (`dx.models.Recursive`). An
      operating point is `{"threshold": []}`. Metrics: loss_answer and loss_halting, means over the
      segments taken; live_segments, their mean number; accuracy_first, accuracy_last, over all
      rows; accuracy_halted, where rows halted; halted, the fraction that halted before the end;
      halting_accuracy, how often q > 0 exactly where the answer is right.

    Raises:
      TypeError, ValueError: `most` below 1, `explore` outside 0..1, `halting_weight` negative, an
        unknown `loss` or `rule`, thresholds out of range; from the loss, a model of fewer than
        `most` segments.

    Example:
      >>> method = segments(most=4)
      >>> rule = method.criterion({"threshold": jnp.float32(0.5)})
      >>> from dynexit.engine.replay import replay
      >>> int(replay(rule, {"halt_logit": jnp.array([[-5.0], [-0.1], [0.3], [4.0]])}).exit_depth[0])
      3

    Source: Jolicoeur-Martineau 2025, arXiv 2510.04871 (TRM, its code without the logit to
      continue), after Wang et al. 2025, arXiv 2506.21734 (HRM). Deviations: by default one update
      covers all S segments of a batch, where halted rows are still computed and only left out of
      the loss; the authors update after each segment and replace a halted row by a new one, which
      is `refill`. The authors run all segments at inference; here a row exits by the halting logit.
    """
    positive_integer(most, "most")
    if not 0 <= explore <= 1:
        raise ValueError(f"`explore` must lie in 0..1, got {explore}")
    if not halting_weight >= 0:
        raise ValueError(f"`halting_weight` must be at least 0, got {halting_weight}")
    answer = {"softmax": multi_exit_cross_entropy, "stablemax": stablemax_cross_entropy}.get(loss)
    if answer is None:
        raise ValueError(f"`loss` must be 'softmax' or 'stablemax', got {loss!r}")
    if rule not in THRESHOLDS:
        raise ValueError(f"`rule` must be 'right' or 'settled', got {rule!r}")
    wanted = THRESHOLDS[rule] if thresholds is None else thresholds
    candidates = levels(wanted, FULL_DEPTH[rule], low=0.0, high=1.0)

    def criterion(operating_point: PyTree) -> Criterion:
        if rule == "right":
            return criteria.gate_above(operating_point["threshold"], probability_right)
        return criteria.gate_above(-operating_point["threshold"], stillness)

    if refill:
        carried = segment_slots(most, explore, halting_weight, answer)
        return Method(None, criterion, candidates, predict, carried=carried)
    return Method(
        None, criterion, candidates, predict, segments_loss(most, explore, halting_weight, answer)
    )


def segments_loss(
    most: int, explore: float, halting_weight: float, answer: Answer
) -> Callable[[Model, PyTree, PyTree, Array, Array, Array], tuple[Array, dict[str, Array]]]:
    """One update for all segments of a batch, the `Method.loss` of `segments`.

    The arguments are those of `segment_slots`.
    """

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        if one_depth(model) < most:
            raise ValueError(
                f"`model` has {model.depth} segments, fewer than the {most} of training (`most`)"
            )
        outputs = run_all(detached(model.steps(params)), model.embed(params, inputs), most)
        logits, sure = outputs["logits"], outputs["halt_logit"].astype(jnp.float32)
        right = jax.vmap(lambda z: exact(predict(z), labels))(logits)  # [S, B]
        live = live_segments(sure, least_segments(key, sure.shape[1], most, explore))
        live = (live & rows_counted(labels)[None]).astype(jnp.float32)
        answers, halting = answer(logits, labels), binary_cross_entropy(sure, right)
        taken = live.sum(axis=0)
        mean = mean_over_rows(taken, labels)
        losses = (live * (answers + halting_weight * halting)).sum(axis=0) / jnp.maximum(mean, 1.0)
        over = lambda values: (live * values).sum() / jnp.maximum(live.sum(), 1.0)
        last = jnp.take_along_axis(right, taken.astype(jnp.int32)[None] - 1, axis=0)[0]
        metrics = {
            "loss_answer": over(answers),
            "loss_halting": over(halting),
            "live_segments": taken,
            "halted": taken < most,
            "accuracy_first": right[0],
            "accuracy_last": right[-1],
            "accuracy_halted": last,
            "halting_accuracy": over(((sure > 0) == right).astype(jnp.float32)),
        }
        return losses, row_means(metrics, labels)

    return loss


def detached(step: Step) -> Step:
    """The step without a gradient to the step before, except through the state's entry "input"."""

    def apply(weights: PyTree, i: Any, state: PyTree) -> tuple[PyTree, ...]:
        entries(
            state, ("input",), "a model whose state holds the input, such as dx.models.Recursive"
        )
        return step.apply(weights, i, {**jax.lax.stop_gradient(state), "input": state["input"]})

    return dataclasses.replace(step, apply=apply)


def live_segments(sure: Float[Array, "S B"], least: Int[Array, "B"]) -> Bool[Array, "S B"]:
    """Segments that rows take part in: up to and including the first s >= least with q > 0.

    Args:
      sure: q, `[S, B]`.
      least: integers `[B]`, from 1.

    Returns:
      bool `[S, B]`, the first row of it true.

    Example:
      >>> sure = jnp.array([[1.0, 1.0], [-1.0, -1.0], [2.0, 2.0], [0.0, 0.0]])
      >>> live_segments(sure, jnp.array([1, 2])).tolist()
      [[True, True], [False, True], [False, True], [False, False]]
    """
    halts = ((sure > 0) & (jnp.arange(1, len(sure) + 1)[:, None] >= least[None])).astype(jnp.int32)
    before = jnp.cumsum(halts, axis=0) - halts  # segments before this one at which it halted
    return before == 0


def probability_right(output: PyTree) -> Float[Array, "b"]:
    """sigmoid(q) of an output, `[b]`."""
    return jax.nn.sigmoid(output["halt_logit"].astype(jnp.float32))


def stillness(output: PyTree) -> Float[Array, "b"]:
    """Minus the relative change of an output, `[b]`."""
    return -output["change"]
