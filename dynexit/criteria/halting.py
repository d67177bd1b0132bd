"""Exit rules of networks with a learned exit score: gates and halting probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from dynexit.core.shapes import Array, Float, Int, PyTree, Rows, Size
from dynexit.core.types import Criterion
from dynexit.criteria.deciding import above
from dynexit.criteria.reading import PerExit, Read, at, exits_of, read_per_row, threshold_leaf


def gate_above(threshold: PerExit, read: Read = None) -> Criterion:
    """Exits when the network's own exit score is high enough, gate > threshold.

    Args:
      threshold: on the scale of the gate, scalar or `[E-1]`.
      read: `read(output) -> gate [b]`; None for the key "gate".

    Returns:
      `Criterion` without memory.

    Example:
      >>> import dynexit as dx
      >>> outputs = {"gate": jnp.array([[0.2], [0.7], [0.9]])}  # [E=3, B=1]
      >>> dx.replay(dx.criteria.gate_above(0.5), outputs).exit
      Array([1], dtype=int32)
    """
    threshold = threshold_leaf(threshold)
    return Criterion(_Gate(read), above(threshold), exits=exits_of(threshold))


def cumulative_halting_above(q: PerExit, read: Read = None) -> Criterion:
    """Exits when the halting distribution has passed a quantile, F_n > q.

    F_n = 1 - prod_{i<=n} (1 - lambda_i).

    Args:
      q: in 0..1, scalar or `[E-1]`; 0.5 is the median of the distribution.
      read: `read(output) -> logit [b]` with lambda = sigmoid(logit); None for the key "halt_logit".

    Returns:
      `Criterion` whose score is ln(1 - F_n), float32 `[b]`, which it remembers: the product would
      underflow.

    Raises:
      ValueError: `q` outside 0..1.

    Example:
      >>> import dynexit as dx
      >>> halting = jnp.array([0.2, 0.5, 0.5, 1.0])  # F = 0.2, 0.6, 0.8, 1
      >>> outputs = {"halt_logit": jax.scipy.special.logit(halting)[:, None]}
      >>> int(dx.replay(dx.criteria.cumulative_halting_above(0.5), outputs).exit_depth[0])
      2

    Source: Balagansky and Gavrilov 2022, PALBERT, Q-exit; for ACT's rule see `halting_sum_above`.
    """
    q = threshold_leaf(q, "q")
    if not isinstance(q, Tracer) and not ((np.asarray(q) >= 0) & (np.asarray(q) <= 1)).all():
        raise ValueError(f"`q` must lie in 0..1, got {np.asarray(q).tolist()}")
    return Criterion(LogSurvival(read), Partial(_passed, q), zeros, exits=exits_of(q))


def halting_sum_above(threshold: PerExit = 0.99, read: Read = None) -> Criterion:
    """Exits when the halting probabilities sum to enough, sum_{i<=n} lambda_i > threshold.

    Args:
      threshold: 1 - eps, scalar or `[E-1]`.
      read: `read(output) -> logit [b]` with lambda = sigmoid(logit); None for the key "halt_logit".

    Returns:
      `Criterion` whose score is the sum, float32 `[b]`, which it remembers.

    Example:
      >>> import dynexit as dx
      >>> halting = jnp.array([0.3, 0.4, 0.5, 0.5])
      >>> outputs = {"halt_logit": jax.scipy.special.logit(halting)[:, None]}
      >>> int(dx.replay(dx.criteria.halting_sum_above(), outputs).exit_depth[0])
      3

    Source: Graves 2016, ACT, equation 6, there with >=; the released Universal Transformer compares
      strictly, as here. The output is the last step's: ACT's weighted mean of the steps is carried
      in the state, see `dynexit.transforms.averaging`.
    """
    threshold = threshold_leaf(threshold)
    return Criterion(_HaltingSum(read), above(threshold), zeros, exits=exits_of(threshold))


# Scores are frozen and hashable, so that what is static about two rules compares equal; thresholds
# come as arguments of the decision.


@dataclasses.dataclass(frozen=True)
class _Gate:
    read: Read

    def __call__(self, i: Array, output: PyTree, memory: PyTree) -> tuple[Array, PyTree]:
        return read_per_row(output, "gate", self.read), memory


@dataclasses.dataclass(frozen=True)
class LogSurvival:
    """The score ln prod_{i<=n} (1 - lambda_i), float32 `[b]`, remembered from step to step."""

    read: Read

    def __call__(
        self, i: Int[Array, "..."], output: Rows, memory: Float[Array, "B"]
    ) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        log_survival = memory + jax.nn.log_sigmoid(-read_per_row(output, "halt_logit", self.read))
        return log_survival, log_survival


@dataclasses.dataclass(frozen=True)
class _HaltingSum:
    read: Read

    def __call__(self, i: Array, output: PyTree, memory: Array) -> tuple[Array, Array]:
        total = memory + jax.nn.sigmoid(read_per_row(output, "halt_logit", self.read))
        return total, total


def _passed(q: Array, i: Array, log_survival: Array, memory: PyTree) -> tuple[Array, PyTree]:
    q = at(q, i)
    possible = q < 1  # F = 1 is never above 1, and ln(1 - 1) is not finite
    return possible & (log_survival < jnp.log1p(-jnp.where(possible, q, 0.0))), memory


def zeros(batch: Size, output: PyTree) -> Float[Array, "b"]:
    """A memory of one float32 number a row."""
    return jnp.zeros(batch, jnp.float32)
