"""Deep equilibrium: training at the fixed point, exit at a tolerance of the residual."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.checks import entries, positive_integer
from dynexit.core.shapes import AnyArray, Array, Float, Key, PyTree
from dynexit.core.types import Criterion, Method, Model, Step
from dynexit.engine.run import run_until
from dynexit.methods.answers import accuracy, logits_of, predict, row_means
from dynexit.objectives.multi_exit import multi_exit_cross_entropy
from dynexit.solvers.anderson import Mixing
from dynexit.solvers.fixed_point import check_mixing, implicit, phantom

# 0 is never passed: full depth
THRESHOLDS = (0.0, *(float(10.0**e) for e in np.arange(-4.0, 0.1, 0.125)))


def equilibrium(
    tolerance: float = 1e-3,
    tolerance_back: float | None = None,
    unrolled: int = 0,
    damping: float = 0.0,
    jacobian: float = 0.0,
    label_smoothing: float = 0.0,
    thresholds: Sequence[float] | Float[AnyArray, "K"] = THRESHOLDS,
    mixing: Mixing | None = None,
) -> Method:
    """The loss at the fixed point, with its implicit gradient or that of a few last iterations.

    Training: L_b = CE(head(f(z*))) + jacobian ||v^T df/dz||^2 / n, with v ~ N(0, 1) and n the size
    of z. The engine computes z*: each row exits at ||f(z) - z|| / ||f(z)|| < tolerance or at full
    depth.

    Inference: a row exits at the first residual below t.

    Args:
      tolerance: of the forward solve in training.
      tolerance_back: of the adjoint solve, which takes at most as many iterations; None for
        `tolerance`.
      unrolled: 0 for the implicit gradient; k for the gradient of the last k iterations alone
        ("phantom"), cheaper and biased.
      damping: of the phantom iterations before the last, which is f itself; needs `unrolled` above
        1.
      jacobian: weight of the penalty that keeps the iteration convergent; published values are 0.1
        to 1.
      label_smoothing: in 0..1.
      thresholds: candidates for t, `[K]`, at least 0; 0, full depth, is added.
      mixing: of the adjoint solve, the same as the model's: where the plain iteration diverges, its
        adjoint does too.

    Returns:
      `Method`. The model is weight-tied, its state has the entry "z" and its outputs are "logits"
      `[E, B, C]` and "residual" `[E, B]` (`dx.solvers.fixed_point_step`, `dx.models.Equilibrium`).
      An operating point is `{"threshold": []}`. Metrics: steps and residual, both of the last
      evaluation; converged, the fraction of rows; loss_labels, accuracy, and jacobian where it is
      penalised.

    Raises:
      TypeError, ValueError: `tolerance`, `jacobian` or `unrolled` negative, the last no integer,
        `damping` not in 0..1, `thresholds` negative; `damping` or `tolerance_back`
        where they would have no effect; from the loss, a model with another `mixing`.

    Example:
      >>> float(equilibrium().candidates.full(4, {})["threshold"])
      0.0

    Source: Bai et al. 2019; Bai et al. 2021 for the penalty; Geng et al. 2021 for the phantom
      gradient. Deviations: each row exits by its own residual, at a calibrated threshold; the loss
      reads f(z*), one iteration on, as torchdeq does.
    """
    refuse(tolerance, tolerance_back, unrolled, damping, jacobian)
    candidates = levels(thresholds, full=0.0, low=0.0)

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        if not isinstance(model.depth, int):
            raise ValueError(f"`model` must be one weight-tied step, got {len(model.depth)} stages")
        step, state = model.steps(params), model.embed(params, inputs)
        entries(state, ("z",), "a fixed point's model, such as dx.models.Equilibrium")
        if "memory" in state:
            check_mixing(state, mixing)
        rule = criteria.residual_below(tolerance)
        detached = lax.stop_gradient((step, state))
        solved = run_until(*detached, model.depth, rule, "masked")
        z, back = solved.state["z"], tolerance if tolerance_back is None else tolerance_back
        if unrolled == 0:
            z = implicit(one_step, step, state, z, model.depth, back, mixing)
        elif unrolled > 1:
            z = phantom(one_step, step, state, z, unrolled - 1, damping)
        output = step.apply(step.select(jnp.int32(0)), jnp.int32(0), {**state, "z": z})[1]
        losses = labelled = multi_exit_cross_entropy(
            logits_of(output)[None], labels, label_smoothing
        )[0]
        residual = solved.output["residual"].astype(jnp.float32)
        metrics = {
            "steps": solved.exit_depth,
            "residual": residual,
            "converged": residual < tolerance,
            "loss_labels": labelled,
            "accuracy": accuracy(output, labels),
        }
        if jacobian:
            metrics["jacobian"] = steepness(step, state, lax.stop_gradient(z), key)
            losses = losses + jacobian * metrics["jacobian"]
        return losses, row_means(metrics, labels)

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.residual_below(operating_point["threshold"])

    return Method(None, criterion, candidates, predict, loss)


def refuse(
    tolerance: float, tolerance_back: float | None, unrolled: int, damping: float, jacobian: float
) -> None:
    """Refuses settings of `equilibrium` that are out of range or have no effect.

    Raises:
      TypeError, ValueError: naming the setting.
    """
    for name, value in dict(tolerance=tolerance, jacobian=jacobian, unrolled=unrolled).items():
        if not value >= 0:
            raise ValueError(f"`{name}` must be at least 0, got {value}")
    if unrolled:
        positive_integer(unrolled, "unrolled")
    if not 0 <= damping < 1 or (damping and unrolled < 2):
        raise ValueError(
            "`damping` must be at least 0 and below 1, and 0 with `unrolled` below 2, "
            f"got {damping} with {unrolled}"
        )
    if tolerance_back is not None and (unrolled or not tolerance_back >= 0):
        raise ValueError(
            "`tolerance_back` must be at least 0, and None with `unrolled`, "
            f"got {tolerance_back} with {unrolled}"
        )


def one_step(step: Step, state: PyTree, z: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The step as a map of z `[b, ...]`; the rest of the state is the first one."""
    return step.apply(step.select(jnp.int32(0)), jnp.int32(0), {**state, "z": z})[0]["z"]


def steepness(
    step: Step, state: PyTree, z: Float[Array, "b ..."], key: Key[Array, ""]
) -> Float[Array, "b"]:
    """||v^T df/dz||^2 / n with one v ~ N(0, 1), float32 `[b]`, in the mean ||df/dz||_F^2 / n.

    The key is consumed.
    """
    v = jax.random.normal(key, z.shape, z.dtype)
    pulled = jax.vjp(lambda z: one_step(step, state, z), z)[1](v)[0].astype(jnp.float32)
    return jnp.square(pulled).reshape(z.shape[0], -1).mean(-1)
