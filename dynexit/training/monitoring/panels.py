"""Names under which wandb shows the records: one section for each kind. Loads no JAX."""

import re
from collections.abc import Mapping
from typing import Any

from dynexit.training.logs import CLOCK, EVAL

HALTING = ("halting_entropy", "mean_steps", "row_steps", "q_steps", "ponder", "at_limit")
DEPTH = f"{EVAL}depth_"
SHARE = re.compile(rf"{DEPTH}share_exit_(\d+)")
OF_EXIT = re.compile(rf"{EVAL}(.+)_exit_(\d+)")


def panels(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record under the names of its panels; wandb makes a section of what stands before `/`.

    The shares of the rows that exit at each exit become one histogram, `depth/exits`.

    Args:
      record: of `metrics.jsonl`.

    Example:
      >>> panels({"step": 3, "loss": 0.5, "eval_accuracy_exit_1": 0.9, "eval_loss": 0.4})
      {'step': 3, 'training/loss': 0.5, 'accuracy per exit/exit 01': 0.9, 'calibration/loss': 0.4}
      >>> panels({"halting_entropy": 0.5, "seconds": 2.0, "eval_depth_mean_exits": 1.5})
      {'halting/halting_entropy': 0.5, 'speed/seconds': 2.0, 'depth/mean_exits': 1.5}
    """
    found = {_panel(name): value for name, value in record.items() if SHARE.fullmatch(name) is None}
    shares = {int(m[1]): v for n, v in record.items() if (m := SHARE.fullmatch(n)) is not None}
    return found | ({"depth/exits": _histogram(shares)} if shares else {})


def _panel(name: str) -> str:
    if name == "step":
        return name
    if name.startswith(DEPTH):
        return f"depth/{name.removeprefix(DEPTH)}"
    if match := OF_EXIT.fullmatch(name):
        return f"{match[1]} per exit/exit {int(match[2]):02}"
    if name.removeprefix(EVAL) in HALTING:
        return f"halting/{name}"
    if name in CLOCK:
        return f"speed/{name}"
    if name.startswith(EVAL):
        return f"calibration/{name.removeprefix(EVAL)}"
    return f"training/{name}"


def _histogram(shares: Mapping[int, float]) -> Any:
    """A histogram over the exits, from the share of the rows at each."""
    import numpy as np
    import wandb

    exits = max(shares) + 1
    counts = np.array([shares.get(e, 0.0) for e in range(exits)])
    return wandb.Histogram(np_histogram=(counts, np.arange(exits + 1) - 0.5))
