"""Halting that has collapsed, seen in what training logs, and said by name."""

import math
from collections.abc import Mapping
from typing import NamedTuple

PATIENCE = 3  # records in a row


class Collapse(NamedTuple):
    """A metric, what has collapsed, and the values at which it has."""

    what: str
    low: float = -math.inf
    high: float = math.inf


COLLAPSES = {
    "halting_entropy": Collapse(
        "halting has collapsed to one step, its distribution has no entropy left", low=1e-3
    ),
    "mean_steps": Collapse("halting has collapsed to the first step", low=1.001),
    "at_limit": Collapse(
        "halting has collapsed to the limit, rows run to the last step", high=0.999
    ),
}


class CollapseWatch:
    """Looks at the records of a run and says once what has collapsed.

    It knows the metrics "halting_entropy" (nats), "mean_steps" and "at_limit" (fraction of the
    rows), also behind a prefix ("q_at_limit"). A collapse is said when it holds for three records
    in a row.

    Example:
      >>> watch = CollapseWatch()
      >>> [watch.look({"step": s, "at_limit": 1.0}) for s in (1, 2, 3, 4)][2:]
      [['step 3: halting has collapsed to the limit, rows run to the last step (at_limit 1)'], []]
    """

    def __init__(self):
        self._streak: dict[str, int] = {}

    def look(self, record: Mapping[str, float]) -> list[str]:
        """What this record adds: a sentence for every collapse that has now lasted."""
        said = []
        for key, value in record.items():
            for name, collapse in COLLAPSES.items():
                if key != name and not key.endswith(f"_{name}"):
                    continue
                gone = not collapse.low <= value <= collapse.high
                self._streak[key] = self._streak.get(key, 0) + 1 if gone else 0
                if self._streak[key] == PATIENCE:
                    said.append(f"step {record['step']:g}: {collapse.what} ({key} {value:.4g})")
        return said
