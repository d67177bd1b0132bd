"""Calibration: chooses the operating point of a trained network on its calibration split."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dynexit.calibration.candidates import with_full_depth
from dynexit.calibration.choose import Choice, choose
from dynexit.calibration.curve import curve
from dynexit.calibration.records import Records
from dynexit.calibration.rules.rule import Rule
from dynexit.core.processes.together import nothing
from dynexit.core.shapes import PyTree, Rows
from dynexit.core.types import Experiment, Source
from dynexit.evaluation.batches import prepared, rows_of, taken_rows
from dynexit.evaluation.costs import RowCosts, costs_of
from dynexit.evaluation.devices import SHARE, devices_for
from dynexit.evaluation.recording import exits_of, fitted, record

COUNTED = 8  # rows of the batch whose FLOPs are counted


class Calibrated(NamedTuple):
    """The result of calibration.

    Attributes:
      choice: the operating point.
      points: all candidates, leaves `[K, ...]`, full depth among them.
      costs: FLOPs per row.
      remarks: sentences for the log: rows that were left out, exits that held a NaN.
    """

    choice: Choice
    points: PyTree
    costs: RowCosts
    remarks: tuple[str, ...] = ()


def calibrate(
    experiment: Experiment,
    params: PyTree,
    rule: Rule,
    batch_size: int,
    log: Callable[[str], None] = nothing,
    mesh: Mesh | None = None,
    between: Callable[[], None] = nothing,
    share: float = SHARE,
) -> Calibrated:
    """Fits the method's statistics, records every exit, and chooses one of the candidates.

    Args:
      experiment: the trained experiment.
      params: its parameters.
      rule: of `dynexit.calibration.rules`. For a rule with a guarantee the candidates and their
        order come from half of the calibration rows, and the other half is tested.
      batch_size: rows per call of the network.
      log: receives the remarks.
      mesh: devices that run a batch each; the result does not depend on their number. None for one
        device. Where they are those of several processes, all call it and have the result.
      between: is called before each batch; what it raises ends calibration.
      share: of a device's memory, see `devices_for`.

    Returns:
      `Calibrated`.

    Raises:
      NoPoint: no candidate meets the rule.
      ValueError: every row of an exit holds a NaN, or no row has a label.
    """
    method, source = experiment.method, experiment.calibration
    halves = _halves(rows_of(source)) if rule.order is not None else None
    devices = devices_for(params, mesh, share)
    placed = devices.place(params)
    found, remarks = fitted(experiment, placed, source, batch_size, halves, devices, between)
    full = jax.tree.map(np.asarray, method.candidates.full(exits_of(experiment, params), found))
    criterion = method.criterion(full)
    costs = costs_of(experiment.model, params, few_inputs(experiment, source), criterion)
    records = record(experiment, placed, source, batch_size, criterion, devices, between)
    remarks += _broken(records)
    for remark in remarks:
        log(remark)
    curve_of = lambda records, points: curve(
        records, points, method.criterion, costs.until, costs.full
    )
    seen = records if halves is None else records.rows(halves)
    points = with_full_depth(
        method.candidates.points(seen.rows(seen.counts), found, costs.until), full
    )
    if rule.order is not None and halves is not None:
        before = curve_of(seen, points)
        points, records = before.reordered(rule.order(before)).points, records.rows(~halves)
    choice = choose(curve_of(records, points), rule)
    # hosts may round differently
    point = devices.agreed(choice.operating_point, "chooses the operating point")
    return Calibrated(choice._replace(operating_point=point), points, costs, remarks)


def few_inputs(experiment: Experiment, source: Source) -> Rows:
    """The shapes of the inputs of a few rows, as the model takes them."""
    given = taken_rows(source.examples()["inputs"], slice(COUNTED))
    return jax.eval_shape(lambda inputs: prepared(experiment, inputs), given)


def _halves(rows: int) -> np.ndarray:
    """bool `[M]`: a random half of the rows, the same each time."""
    half = np.zeros(rows, bool)
    half[np.random.default_rng(0).permutation(rows)[: rows // 2]] = True
    return half


def _broken(records: Records) -> tuple[str, ...]:
    """A remark for each exit that held a NaN for some of the rows.

    Raises:
      ValueError: an exit held a NaN for all rows.
    """
    nan = records.nan.mean(axis=1)
    if (nan == 1).any():
        raise ValueError(
            f"`params` give a NaN for every row at exit {int(np.argmax(nan == 1))}; the network "
            "has diverged or its inputs hold NaNs, and no threshold can be chosen"
        )
    return tuple(
        f"exit {e}: {int(broken.sum())} of {len(broken)} rows hold a NaN and do not exit there"
        for e, broken in enumerate(records.nan)
        if broken.any()
    )
