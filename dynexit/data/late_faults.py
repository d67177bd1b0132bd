"""Data that calibration or the report would refuse, found before the first update."""

import jax
import numpy as np

from dynexit.core.labels import check_labels, check_scored
from dynexit.core.types import Experiment


def refuse_late_faults(experiment: Experiment, seed: int, size: int) -> None:
    """Checks the labels of every split, and that no input of the calibration split is a NaN.

    Args:
      experiment: what is about to be trained.
      seed, size: of the first training batch, whose labels are checked here.

    Raises:
      TypeError: labels that the method's `score` cannot compare.
      ValueError: labels that are no class, or a NaN; the split and the row are named.
    """
    splits = {
        "train": experiment.train.batch(seed, 0, size),
        "calibration": experiment.calibration.examples(),
        "test": experiment.test.examples(),
    }
    for name, batch in splits.items():
        source, labels = f"experiment.{name}", np.asarray(batch["labels"])
        check_scored(labels, experiment.method.score, source)
        check_labels(labels, len(experiment.classes), source)
    for path, leaf in jax.tree_util.tree_flatten_with_path(splits["calibration"]["inputs"])[0]:
        leaf = np.asarray(leaf)
        if leaf.dtype.kind == "f" and np.isnan(leaf).any():
            bad = np.isnan(leaf).reshape(len(leaf), -1).any(axis=1)
            raise ValueError(
                f"inputs{jax.tree_util.keystr(path)} of `experiment.calibration` must not hold a "
                f"NaN, got {int(bad.sum())} rows with one; the first is row {int(bad.argmax())}"
            )
