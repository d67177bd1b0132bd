"""One operating point out of many, from the calibration split alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.calibration.curve import Curve, Predictions, curve
from dynexit.core.labels import exact
from dynexit.core.types import Array, Criterion, Halted, PyTree

SLACK = 1e-9  # for accuracies that are equal but for float64 rounding


class NoPoint(ValueError):
    """No candidate meets the rule."""


class Choice(NamedTuple):
    """An operating point, what it did on the calibration split, and why it was taken.

    Attributes:
      operating_point: leaves `[...]`.
      index: its place among the candidates.
      accuracy: on the calibration split; the accuracy to report is that of the test split.
      accuracy_full: of full depth, on the same rows.
      standard_error: of accuracy - accuracy_full, from paired rows. It holds for a point fixed
        beforehand: the best of many looks better than it is, by about this much.
      cost: mean FLOPs per row.
      cost_fraction: of full depth's.
      mean_depth: mean exits evaluated per row, in 1..E.
      exit_fraction: float64 `[E]`, achieved.
      accepted: the rule, in words.
      split, fingerprint: the data it was chosen on.
      rows: M.
    """

    operating_point: PyTree
    index: int
    accuracy: float
    accuracy_full: float
    standard_error: float
    cost: float
    cost_fraction: float
    mean_depth: float
    exit_fraction: np.ndarray
    accepted: str
    split: str
    fingerprint: str
    rows: int


def choose(
    predictions: Predictions,
    points: PyTree,
    criterion: Callable[[PyTree], Criterion],
    predict: Callable[[PyTree], Array],
    costs: Any,
    replay: Callable[[Criterion, PyTree], Halted],
    accept_loss: float | None = None,
    budget: float | None = None,
    max_negative_flips: float | None = None,
    score: Callable[[Any, Any], Any] = exact,
    full_cost: float | None = None,
) -> Choice:
    """The cheapest point that loses at most so much accuracy, or the most accurate that costs at
    most so much.

    Exactly one of the two rules:
      accept_loss: cheapest with accuracy >= accuracy of full depth - accept_loss; equal costs: the
        more accurate. With `max_negative_flips` also: at most that fraction of the rows right at full
        depth and wrong at the point, whatever other rows gain; a stricter promise, for splits so
        small that gains and losses cancel by luck.
      budget: most accurate with mean cost <= budget x cost of full depth; equal accuracies: the
        cheaper.

    Args:
      predictions: of the calibration split.
      points: candidates, leaves `[K, ...]`, with full depth among them.
      criterion, predict, costs, replay, grade: as in `dynexit.calibration.curve`.
      accept_loss: fraction of the rows, in 0..1.
      budget: fraction of full depth's FLOPs, in 0..1, 0 excluded.
      max_negative_flips: fraction of the rows, in 0..1, or None for any.
      full_cost: FLOPs of full depth, which `budget` is a fraction of; None for the last of `costs`.
        The plain network costs a little less than one that reads all its exits.

    Returns:
      `Choice`.

    Raises:
      NoPoint: none meets the rule.
      ValueError: predictions of the train or test split, NaNs among them or among `points`, both or
        neither rule.
      TypeError: labels that are not integers.

    Example:
      >>> import dynexit as dx
      >>> # [E=2, M=2, C=2]: row 1 needs exit 1
      >>> logits = jnp.array([[[9.0, 0.0], [0.1, 0.0]], [[9.0, 0.0], [0.0, 9.0]]])
      >>> known = Predictions("calibration", logits, np.array([0, 1]), "digest")
      >>> rule = lambda operating_point: dx.criteria.max_probability_above(operating_point["threshold"])
      >>> points = {"threshold": jnp.array([[0.5], [0.9], [jnp.inf]])}
      >>> choice = choose(known, points, rule, lambda z: z.argmax(-1), [1.0, 2.0], dx.replay, accept_loss=0.0)
      >>> choice.index, choice.cost_fraction, choice.accuracy
      (1, 0.75, 1.0)

    Source: the rule of Kaya et al. 2019, SDN, with the loss absolute and not relative; the budget
      of Huang et al. 2018, MSDNet.
    """
    _refuse_split(predictions.split)
    if (accept_loss is None) == (budget is None):
        both = "neither" if accept_loss is None else "both"
        raise ValueError(
            f"exactly one of `accept_loss` and `budget` must be given, got {both}; they are two different rules"
        )
    _refuse_nan(predictions.outputs)
    for path, leaf in jax.tree_util.tree_flatten_with_path(points)[0]:
        if np.isnan(np.asarray(leaf, np.float64)).any():
            raise ValueError(f"`points`{jax.tree_util.keystr(path)} must not hold a NaN")
    found = curve(predictions, points, criterion, predict, costs, replay, score)
    full = float(np.asarray(costs, np.float64)[-1] if full_cost is None else full_cost)
    if accept_loss is not None:
        k, accepted = _cheapest(
            found, accept_loss, 1.0 if max_negative_flips is None else max_negative_flips
        )
    else:
        k, accepted = _most_accurate(found, budget, full)
    return Choice(
        jax.tree.map(lambda a: jnp.asarray(a)[k], points),
        k,
        float(found.accuracy[k]),
        found.accuracy_full,
        float(found.standard_error[k]),
        float(found.cost[k]),
        float(found.cost[k] / full),
        float(found.mean_depth[k]),
        found.exit_fraction[k],
        accepted,
        predictions.split,
        predictions.fingerprint,
        len(predictions.labels),
    )


def refuse_same_split(choice: Choice, predictions: Predictions) -> None:
    """Refuses to report a choice on the data it was made on.

    Args:
      choice: of `choose`.
      predictions: what is about to be reported.

    Raises:
      ValueError: the same split by name, or the same data by fingerprint.
    """
    if choice.split == predictions.split:
        raise ValueError(
            f"`predictions` are of the {predictions.split!r} split, on which this operating point was chosen; "
            "its numbers there are too good. Report it on the test split"
        )
    if choice.fingerprint == predictions.fingerprint:
        raise ValueError(
            f"`predictions` of the {predictions.split!r} split hold the very data on which this operating point was chosen "
            f"(fingerprint {choice.fingerprint[:12]}); its numbers there are too good. The splits must be disjoint"
        )


def _cheapest(found: Curve, accept_loss: float, max_negative_flips: float) -> tuple[int, str]:
    for name, value in (("accept_loss", accept_loss), ("max_negative_flips", max_negative_flips)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in 0..1, a fraction of the rows, got {value}")
    allowed = (found.accuracy >= found.accuracy_full - accept_loss - SLACK) & (
        found.flips <= max_negative_flips + SLACK
    )
    if not allowed.any():
        raise NoPoint(
            f"`points` hold none that loses at most {accept_loss:g} of accuracy {found.accuracy_full:.4f}; the best has "
            f"{found.accuracy.max():.4f}. Full depth must be among the candidates"
        )
    order = np.lexsort((-found.accuracy, found.cost))
    k = int(order[allowed[order]][0])
    flips = (
        ""
        if max_negative_flips == 1
        else f" and turns at most {max_negative_flips:g} of the rows from right to wrong"
    )
    return (
        k,
        f"cheapest of {len(allowed)} points that loses at most {accept_loss:g} of full depth's accuracy{flips}",
    )


def _most_accurate(found: Curve, budget: float | None, full: float) -> tuple[int, str]:
    if budget is None or not 0 < budget <= 1:
        raise ValueError(
            f"`budget` must lie in 0..1, 0 excluded, a fraction of full depth's FLOPs, got {budget}"
        )
    allowed = found.cost <= budget * full * (1 + SLACK)
    if not allowed.any():
        least = np.ceil(1e4 * found.cost.min() / full) / 1e4
        raise NoPoint(
            f"`budget` of {budget:g} of full depth's FLOPs cannot be met: the cheapest point costs {least:.4f}. "
            "Ask for at least that, or give the network an earlier exit"
        )
    order = np.lexsort((found.cost, -found.accuracy))
    k = int(order[allowed[order]][0])
    return (
        k,
        f"most accurate of {len(allowed)} points that costs at most {budget:g} of full depth's FLOPs",
    )


def _refuse_split(split: str) -> None:
    why = {
        "test": "the split that will be reported may not choose thresholds: the report would be too good",
        "train": "the network has fitted these rows, so its confidences on them are too high and new rows would leave later",
    }.get(split, "thresholds are chosen on the calibration split alone")
    if split != "calibration":
        raise ValueError(
            f"`predictions` are of the {split!r} split: {why}. Pass those of the 'calibration' split"
        )


def _refuse_nan(outputs: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(outputs)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            continue
        bad = np.asarray(jnp.isnan(leaf).reshape(*leaf.shape[:2], -1).any(axis=2))  # [E, M]
        if bad.any():
            rows, exit = int(bad.any(axis=0).sum()), int(bad.any(axis=1).argmax())
            raise ValueError(
                f"`predictions.outputs`{jax.tree_util.keystr(path)} hold a NaN in {rows} of {bad.shape[1]} rows, first at exit "
                f"{exit}; the network has diverged or its inputs hold NaNs, and no threshold can be chosen"
            )
