"""Deep thinking: training for progress from any state, exit once the answer has settled."""

from collections.abc import Sequence

import jax
import numpy as np

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.checks import positive_integer
from dynexit.core.shapes import AnyArray, Array, Float, Int, Key, PyTree
from dynexit.core.stages import one_depth
from dynexit.core.types import Criterion, Method, Model
from dynexit.engine.gradients.truncated import run_truncated
from dynexit.engine.steps import every_iteration
from dynexit.methods.answers import accuracy, logits_of, predict, row_means
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

THRESHOLDS = (0.0, *(10.0**e for e in np.arange(-6.0, -0.9, 0.25)))  # 0 is never passed: full depth


def deep_thinking(
    most: int,
    alpha: float = 1.0,
    thresholds: Sequence[float] | Float[AnyArray, "K"] = THRESHOLDS,
    settled: int = 2,
) -> Method:
    """The progressive loss of DT-recall, and an exit once the answer has settled.

    Training: L = (1 - alpha) L_m + alpha L_prog. L_m = CE after m iterations from the start.
    L_prog = CE after n ~ U{0..m-1} iterations without gradients and k ~ U{1..m-n} with them. There
    is one draw (n, k) per update, for all rows. n and k count iterations also where exits are
    several iterations apart: a network trained only at every fourth iteration learns to oscillate
    between them.

    Inference: a row exits once KL(p_{i-1} || p_i) < t at every place, for `settled` consecutive
    exits.

    Args:
      most: m, iterations in training; the model may have more, for tests on larger problems.
      alpha: in 0..1; 1 is the cheapest, because L_m is not computed.
      thresholds: candidates for t in nats, `[K]`, at least 0; 0, full depth, is added.
      settled: consecutive exits.

    Returns:
      `Method`. The model is weight-tied, its state has the entries "input" and "h"
      (`dx.models.DeepThinking`), its outputs are logits `[E, B, ..., C]`. An operating point is
      `{"threshold": []}`. Metrics: iterations (n + k), loss_progressive, accuracy after them, and
      with alpha below 1 loss_full and accuracy_full.

    Raises:
      TypeError, ValueError: `most` or `settled` below 1, `alpha` outside 0..1, `thresholds`
        negative; from the loss, a model of fewer than `most` iterations.

    Source: Bansal et al. 2022, arXiv 2202.05826, algorithm 1. Deviation: the paper runs a fixed
      number of iterations or takes the most confident of all; the exit is not in the paper.
    """
    positive_integer(most, "most")
    positive_integer(settled, "settled")
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie in 0..1, got {alpha}")
    candidates = levels(thresholds, full=0.0, low=0.0)

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        if one_depth(model) < most:
            raise ValueError(
                f"`model` has {model.depth} iterations, fewer than the {most} of training (`most`)"
            )
        step, state = every_iteration(model.steps(params)), model.embed(params, inputs)

        def after(free: int | Array, steps: int | Array) -> tuple[Array, Array]:
            _, output = run_truncated(step, state, free, steps, most, ("input",))
            return multi_exit_cross_entropy(logits_of(output)[None], labels)[0], accuracy(
                output, labels
            )

        free, steps = progress_drawn(key, most)
        losses, right = after(free, steps)
        metrics = {"iterations": free + steps, "loss_progressive": losses, "accuracy": right}
        if alpha < 1:
            whole, right = after(0, most)
            losses = alpha * losses + (1 - alpha) * whole
            metrics |= {"loss_full": whole, "accuracy_full": right}
        return losses, row_means(metrics, labels)

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.consecutive(
            settled, criteria.divergence_below(operating_point["threshold"])
        )

    return Method(None, criterion, candidates, predict, loss)


def progress_drawn(key: Key[Array, ""], most: int) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """n ~ U{0..m-1} and k ~ U{1..m-n}, int32 `[]`; the key is consumed.

    Example:
      >>> n, k = progress_drawn(jax.random.key(0), 30)
      >>> bool((n >= 0) & (k >= 1) & (n + k <= 30))
      True
    """
    first, second = jax.random.split(key)
    free = jax.random.randint(first, (), 0, most)
    return free, jax.random.randint(second, (), 1, most - free + 1)
