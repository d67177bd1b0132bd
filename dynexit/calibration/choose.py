"""Chooses one operating point from a curve of the calibration split."""

from typing import NamedTuple

import jax

from dynexit.calibration.curve import Curve
from dynexit.calibration.rules.rule import Rule
from dynexit.core.shapes import Float, HostArray, PyTree


class Choice(NamedTuple):
    """An operating point, its results on the calibration split, and the rule that chose it.

    Attributes:
      operating_point: leaves `[...]`.
      index: its index among the points of the curve.
      accuracy: on the calibration split; the accuracy to report is that of the test split.
      accuracy_full: of full depth, on the same rows.
      standard_error: of accuracy - accuracy_full, from paired rows. It holds for a point fixed
        beforehand: the best of many points appears better than it is, by about this much.
      cost: mean FLOPs per row.
      cost_fraction: of full depth's.
      mean_depth: mean exits evaluated per row, in 1..E.
      exit_fraction: float64 `[E]`, achieved.
      accepted: the rule, in words.
      guarantee: what the rule guarantees, in words.
      split, fingerprint: the data it was chosen on.
      rows: M, those that count.
    """

    operating_point: PyTree
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  not `tuple.index`
    accuracy: float
    accuracy_full: float
    standard_error: float
    cost: float
    cost_fraction: float
    mean_depth: float
    exit_fraction: Float[HostArray, "E"]
    accepted: str
    guarantee: str
    split: str
    fingerprint: str
    rows: int


def choose(curve: Curve, rule: Rule) -> Choice:
    """The operating point that a rule takes from a curve.

    Args:
      curve: of the calibration split.
      rule: of `dynexit.calibration.rules`.

    Returns:
      `Choice`.

    Raises:
      NoPoint: no point meets the rule.
      ValueError: a curve of the train or test split.
      TypeError: `rule` is no rule.

    Example:
      >>> import dynexit as dx
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> # [E=2, M=2, C=2]: row 1 needs exit 1
      >>> logits = jnp.array([[[9.0, 0.0], [0.1, 0.0]], [[9.0, 0.0], [0.0, 9.0]]])
      >>> rule = lambda point: dx.criteria.max_probability_above(point["threshold"])
      >>> points = {"threshold": np.array([[0.5], [0.9], [np.inf]])}
      >>> one = rule({"threshold": np.array([0.5])})
      >>> records = dx.calibration.records_of(logits, [0, 1], one, lambda z: z.argmax(-1))
      >>> found = dx.calibration.curve(records, points, rule, costs=[1.0, 2.0])
      >>> choice = choose(found, dx.calibration.rules.accept_loss(0.0))
      >>> choice.index, choice.cost_fraction, choice.accuracy
      (1, 0.75, 1.0)
    """
    _refuse_split(curve.split)
    if not isinstance(rule, Rule):
        raise TypeError(
            f"`rule` must be one of dx.calibration.rules, such as accept_loss(0.005), got {rule!r}"
        )
    k = rule.pick(curve)
    return Choice(
        jax.tree.map(lambda a: a[k], curve.points),
        k,
        float(curve.accuracy[k]),
        curve.accuracy_full,
        float(curve.standard_error[k]),
        float(curve.cost[k]),
        float(curve.cost[k] / curve.cost_full),
        float(curve.mean_depth[k]),
        curve.exit_fraction[k],
        f"{rule.words}, of {len(curve.cost)} points",
        rule.guarantee,
        curve.split,
        curve.fingerprint,
        curve.rows,
    )


def refuse_same_split(choice: Choice, split: str, fingerprint: str) -> None:
    """Refuses to report a choice on the data it was made on.

    Args:
      choice: of `choose`.
      split, fingerprint: of the data to report on.

    Raises:
      ValueError: the same split by name, or the same data by fingerprint.
    """
    if choice.split == split:
        raise ValueError(
            f"`split` is {split!r}, on which this operating point was chosen; its numbers there "
            "are too good. Report it on the test split"
        )
    if choice.fingerprint == fingerprint:
        raise ValueError(
            f"`fingerprint` of the {split!r} split is that of the data on which this operating "
            f"point was chosen ({fingerprint[:12]}); its numbers there are too good. The splits "
            "must be disjoint"
        )


def _refuse_split(split: str) -> None:
    why = {
        "test": "the reported split may not choose thresholds: the report would be too good",
        "train": "the network has fitted these rows, so its confidences on them are too high and "
        "new rows would exit later",
    }.get(split, "thresholds are chosen on the calibration split alone")
    if split != "calibration":
        raise ValueError(
            f"`curve` is of the {split!r} split: {why}. Pass that of the 'calibration' split"
        )
