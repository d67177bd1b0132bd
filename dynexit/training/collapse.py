"""Detects collapsed halting in the metrics that training logs."""

import math
from collections.abc import Mapping
from typing import NamedTuple

PATIENCE = 3  # consecutive records


class Collapse(NamedTuple):
    """A description of the collapse and the range of the metric outside of which it holds."""

    what: str
    low: float = -math.inf
    high: float = math.inf


COLLAPSES = {
    "halting_entropy": Collapse(
        "halting has collapsed to one step, the entropy of its distribution is near 0", low=1e-3
    ),
    "mean_steps": Collapse("halting has collapsed to the first step", low=1.001),
    "at_limit": Collapse(
        "halting has collapsed to the limit, rows run to the last step", high=0.999
    ),
}


class CollapseWatch:
    """Reads the records of a run and reports each collapse once.

    It knows the metrics "halting_entropy" (nats), "mean_steps" and "at_limit" (fraction of the
    rows), also behind a prefix ("q_at_limit"). A collapse is reported when it holds for three
    consecutive records.

    Example:
      >>> watch = CollapseWatch()
      >>> [watch.look({"step": s, "at_limit": 1.0}) for s in (1, 2, 3, 4)][2:]
      [['step 3: halting has collapsed to the limit, rows run to the last step (at_limit 1)'], []]
    """

    def __init__(self):
        self._streak: dict[str, int] = {}

    def look(self, record: Mapping[str, float]) -> list[str]:
        """Reads one record; returns a sentence for every collapse that has lasted long enough."""
        found = []
        for key, value in record.items():
            for name, collapse in COLLAPSES.items():
                if key != name and not key.endswith(f"_{name}"):
                    continue
                collapsed = not collapse.low <= value <= collapse.high
                self._streak[key] = self._streak.get(key, 0) + 1 if collapsed else 0
                if self._streak[key] == PATIENCE:
                    found.append(f"step {record['step']:g}: {collapse.what} ({key} {value:.4g})")
        return found
