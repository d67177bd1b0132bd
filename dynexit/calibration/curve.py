"""Results of many operating points on every row of a split, from its records.

The network is not run again.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from dynexit.calibration.records import Records
from dynexit.core.shapes import AnyArray, Bool, Float, HostArray, Int, Num, PyTree, Shaped
from dynexit.core.types import Criterion
from dynexit.engine.replay import replay_scores

PerPoint: TypeAlias = Float[HostArray, "K"]


class Curve(NamedTuple):
    """K operating points on the M labelled rows of a split, on the host.

    A rule chooses from it. Points of other networks are more rows of the same table, each with its
    own cost.

    Attributes:
      points: leaves `[K, ...]`.
      exit: integers `[K, M]`, the exit of each row.
      right: float32 `[K, M]`, the method's score of each answer.
      agrees: bool `[K, M]`, whether the answer is that of full depth.
      loss: float64 `[K]`, mean cross-entropy in nats; None where the records have none.
      right_full: float32 `[M]`, the score of full depth.
      cost: float64 `[K]`, mean FLOPs per row.
      cost_full: FLOPs of full depth, of which fractions are taken.
      exits: E.
      split, fingerprint: of the data.
    """

    points: PyTree
    exit: Shaped[HostArray, "K M"]
    right: Float[HostArray, "K M"]
    agrees: Bool[HostArray, "K M"]
    loss: PerPoint | None
    right_full: Float[HostArray, "M"]
    cost: PerPoint
    cost_full: float
    exits: int
    split: str
    fingerprint: str

    @property
    def rows(self) -> int:
        """M, the number of rows."""
        return self.right.shape[1]

    @property
    def accuracy(self) -> PerPoint:
        """float64 `[K]`, the mean score."""
        return self.right.mean(axis=1, dtype=np.float64)

    @property
    def accuracy_full(self) -> float:
        """Of full depth."""
        return float(self.right_full.mean(dtype=np.float64))

    @property
    def exit_fraction(self) -> Float[HostArray, "K E"]:
        """float64 `[K, E]`, achieved fraction of the rows at each exit."""
        return np.stack([np.bincount(e, minlength=self.exits) for e in self.exit]) / self.rows

    @property
    def mean_depth(self) -> PerPoint:
        """float64 `[K]`, mean exits evaluated per row, in 1..E."""
        return self.exit.mean(axis=1, dtype=np.float64) + 1

    @property
    def standard_error(self) -> PerPoint:
        """float64 `[K]`, of accuracy - accuracy_full, from the paired differences of the rows.

        Where scores are 0 or 1 it is sqrt(b + c - (b - c)^2 / M) / M, with b rows right only at
        full depth and c only at the point. It is 0 where no row changed; then M is too small to
        show a change.
        """
        change = self.right - self.right_full
        return change.std(axis=1, dtype=np.float64) / np.sqrt(self.rows)

    @property
    def flips(self) -> PerPoint:
        """float64 `[K]`, negative flips: the fraction of rows that score below full depth.

        Gains of other rows are not counted (Yan et al. 2021, arXiv 2011.09161).
        """
        return (self.right < self.right_full).mean(axis=1)

    def reordered(self, order: Int[HostArray, "k"] | slice) -> "Curve":
        """The points `order`, indices `[K']`."""
        take = lambda a: None if a is None else a[order]
        return self._replace(
            points=jax.tree.map(take, self.points),
            exit=take(self.exit),
            right=take(self.right),
            agrees=take(self.agrees),
            loss=take(self.loss),
            cost=take(self.cost),
        )


def curve(
    records: Records,
    points: PyTree,
    criterion: Callable[[PyTree], Criterion],
    costs: Sequence[float] | Num[AnyArray, "E"],
    cost_full: float | None = None,
) -> Curve:
    """Evaluates every operating point on stored scores; only `decide` runs.

    Args:
      records: of any split; points may be drawn on the test split, not chosen there.
      points: leaves `[K, ...]`.
      criterion: `criterion(point) -> Criterion`; static, so pass the same function each time.
      costs: cumulative FLOPs per row at every exit, `[E]`.
      cost_full: FLOPs of full depth; None for the last of `costs`. The network without early exits
        costs a little less than one that reads all its exits.

    Returns:
      `Curve`, over the rows that count.

    Raises:
      ValueError: no points, no row that counts, shapes that do not fit, or points whose criteria
        have different scores.

    Example: see `dynexit.calibration.choose`.
    """
    points = jax.tree.map(np.asarray, points)
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(points)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(
            "`points` must have leaves [K, ...] with one K of at least 1, got leading axes "
            f"{sorted(sizes)}"
        )
    costs = np.asarray(costs, np.float64)
    if costs.ndim != 1 or not (np.diff(costs, prepend=0.0) > 0).all():
        raise ValueError(
            "`costs` must be cumulative FLOPs of shape [E], above 0 and rising, got "
            f"{costs.tolist()}"
        )
    if records.right.shape != (len(costs), len(records.labels)):
        raise ValueError(
            f"`records` must be of E = {len(costs)} exits as `costs` and M = {len(records.labels)} "
            f"rows as the labels, got {records.right.shape}"
        )
    if not records.counts.any():
        raise ValueError("`records` hold no row with a label")
    _check_scores(criterion, points)
    if not records.counts.all():
        records = records.rows(records.counts)
    exit = np.asarray(replay_scores(criterion, points, records.scores, records.nan))
    exit = exit.astype(np.min_scalar_type(len(costs)))
    rows = np.arange(exit.shape[1])
    same = records.predictions == records.predictions[-1]
    same = same.all(axis=tuple(range(2, same.ndim)))
    taken = lambda values: np.stack([values[e, rows] for e in exit])
    mean_loss = lambda losses: np.array([losses[e, rows].mean(dtype=np.float64) for e in exit])
    return Curve(
        points,
        exit,
        taken(records.right),
        taken(same),
        None if records.losses is None else mean_loss(records.losses),
        records.right[-1],
        np.array([costs[e].mean() for e in exit]),
        float(costs[-1] if cost_full is None else cost_full),
        len(costs),
        records.split,
        records.fingerprint,
    )


def _check_scores(criterion: Callable[[PyTree], Criterion], points: PyTree) -> None:
    """Refuses points whose criteria differ in the parameters of the score (temperatures)."""
    made = jax.vmap(lambda point: criterion(point).score)(points)
    for leaf in map(np.asarray, jax.tree.leaves(made)):
        if (leaf != leaf[:1]).any():
            raise ValueError(
                "`points` must have criteria of one score, but the parameters of their scores "
                f"differ, such as {leaf[0].tolist()} and {leaf[-1].tolist()}: only decisions are "
                "compared on stored scores"
            )
