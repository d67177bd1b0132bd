"""Where rows exit during training, at the operating point that calibration would choose then."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dynexit.calibration.rules.rule import NoPoint, Rule
from dynexit.core.processes.together import nothing
from dynexit.core.settings import Training
from dynexit.core.shapes import Float, PyTree
from dynexit.core.types import Experiment
from dynexit.evaluation.calibrate import calibrate
from dynexit.evaluation.devices import mesh_of
from dynexit.training.evals import spread


def depth_evals(
    experiment: Experiment,
    settings: Training,
    rule: Rule,
    batch_size: int,
    between: Callable[[], None] = nothing,
) -> Sequence[tuple[str, Callable[[PyTree], dict[str, float]]]]:
    """An evaluation for `fit(evals=...)`, where wandb shows its results; else none.

    Each evaluation calibrates on at most `settings.eval_rows` rows of the calibration split, and so
    compiles and runs the passes of calibration, on the devices of training and with the parameters
    as they are there.

    Args:
      experiment: the model and the method.
      settings: `wandb`, `eval_every` and `eval_rows`.
      rule: by which the operating point is chosen.
      batch_size: rows per call, and of the batches whose occupancy is expected.
      between: is called before each batch; what it raises ends the evaluation.

    Returns:
      No pair, or one, `("depth", function)`. The function's results are empty where no point meets
      the rule, else `share_exit_<e>`, the fraction of the rows that exit at exit e;
      `mean_exits`, exits evaluated per row; `flops_ratio`, of full depth's FLOPs; `entropy` of the
      shares, in nats; `occupancy_masked`, see `masked_occupancy`.
    """
    if settings.wandb == "off" or settings.eval_every == 0:
        return ()
    source = experiment.calibration

    def some() -> dict[str, Any]:
        examples = source.examples()
        rows = spread(len(examples["labels"]), settings.eval_rows)
        return jax.tree.map(lambda a: np.asarray(a[rows]), examples)

    fewer = experiment._replace(calibration=source._replace(examples=some))

    def depths(params: PyTree) -> dict[str, float]:
        mesh = mesh_of(params)
        try:
            choice = calibrate(
                fewer, params, rule, batch_size, mesh=mesh, between=between, share=0
            ).choice
        except (NoPoint, ValueError):  # no point meets the rule, or an exit gives NaNs
            return {}
        shares = choice.exit_fraction
        some = shares[shares > 0]
        return {f"share_exit_{e}": float(share) for e, share in enumerate(shares)} | {
            "mean_exits": choice.mean_depth,
            "flops_ratio": choice.cost_fraction,
            "entropy": float(abs((some * np.log(some)).sum())),
            "occupancy_masked": masked_occupancy(shares, batch_size),
        }

    return (("depth", depths),)


def masked_occupancy(shares: Float[np.ndarray, "E"], batch_size: int) -> float:
    """The fraction of useful rows x exits in batches that run until their last row has exited.

    With F the cumulative share and depths d in 1..E, E[d] / E[max d of B independent rows], where
    E[max] = sum_d (1 - F(d - 1)^B).

    Args:
      shares: float64 `[E]`, the fraction of the rows that exit at each exit.
      batch_size: B.

    Example:
      >>> masked_occupancy(np.array([0.0, 1.0]), 8), masked_occupancy(np.array([0.5, 0.5]), 1)
      (1.0, 1.0)
      >>> masked_occupancy(np.array([0.5, 0.5]), 1000)
      0.75
    """
    before = np.concatenate([[0.0], np.cumsum(shares)[:-1]])
    mean = float((shares * np.arange(1, len(shares) + 1)).sum())
    return mean / float((1 - np.minimum(before, 1.0) ** batch_size).sum())
