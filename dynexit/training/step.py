"""One training step, compiled: augment, prepare, embed, every exit, objective, gradient, update."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dynexit.core.settings import Training
from dynexit.core.shapes import Array, Float, PyTree, Shaped
from dynexit.core.types import Experiment, Step
from dynexit.data.source import Batch
from dynexit.engine.run import run_all
from dynexit.engine.steps import rematerialised
from dynexit.objectives.multi_exit import mean_over_rows
from dynexit.training.frozen import joined, split
from dynexit.training.logs import CLOCK, EVAL
from dynexit.training.optimizer import learning_rate, make_optimizer
from dynexit.training.parallel.constants import Compiled
from dynexit.training.parallel.constrained import constrained
from dynexit.training.parallel.mesh import check_batch_size, replicated
from dynexit.training.parallel.rules import TENSOR_PARALLEL, Rules
from dynexit.training.state import TrainState, cast, state_shapes, state_shardings

Metrics: TypeAlias = dict[str, Shaped[Array, ""]]
TrainStep: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
# folded into a step's key for the method's loss; augmentations fold in small numbers
LOSS = 2**31 - 1
DROPOUT = LOSS - 1  # likewise, for `Model.training`
OWN_METRICS = ("loss", "grad_norm", "learning_rate", "finite")  # and names that begin with EVAL


def make_loss(
    experiment: Experiment, settings: Training
) -> Callable[..., tuple[Float[Array, ""], tuple[Metrics, PyTree]]]:
    """`loss(params, carry, inputs [B, ...], labels [B, ...], key, progress []) -> (mean loss [],
    (metrics, carry))`.

    With `precision="bfloat16"` parameters and inputs are cast for the forward pass and outputs are
    cast back, so the objective and the gradient's sum over the batch are float32. A method with a
    loss of its own receives the cast ones.
    """
    method = experiment.method
    compute = jnp.dtype(settings.precision)

    def loss(
        params: PyTree, carry: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Float[Array, ""], tuple[Metrics, PyTree]]:
        params, inputs = cast(params, compute), cast(inputs, compute)
        model = experiment.model
        if model.training is not None:
            model = model.training(jax.random.fold_in(key, DROPOUT))
        if settings.remat:
            steps, apart = model.steps, method.frozen != ()
            model = model._replace(steps=lambda params: _rematerialised(steps(params), apart))
        if method.carried is not None:
            losses, metrics, carry = method.carried.loss(
                model, params, carry, inputs, labels, key, progress
            )
        elif method.loss is not None:
            losses, metrics = method.loss(model, params, inputs, labels, key, progress)
        else:
            assert method.objective is not None, (
                "a method has an objective, a loss or a carried loss"
            )
            with jax.named_scope("embed"):
                state = model.embed(params, inputs)
            outputs = run_all(model.steps(params), state, model.depth)
            with jax.named_scope("objective"):
                losses, metrics = method.objective(cast(outputs, jnp.float32), labels, progress)
        if jnp.shape(losses) != jnp.shape(labels)[:1]:
            raise ValueError(
                f"`method` must return one loss per example, shape {list(jnp.shape(labels)[:1])}, "
                f"got {list(jnp.shape(losses))}"
            )
        taken = (*OWN_METRICS, *CLOCK, "step")
        if clash := sorted(n for n in metrics if n in taken or n.startswith(EVAL)):
            raise ValueError(
                f"`method` returns metrics named {clash}, which training itself reports; "
                "rename them"
            )
        # the rows of carried slots are not those of the batch
        mean = jnp.mean(losses) if method.carried is not None else mean_over_rows(losses, labels)
        return mean, (metrics, carry)

    return loss


def make_gradient(experiment: Experiment, settings: Training) -> Callable[..., Any]:
    """`gradient(params, ...) -> ((loss, (metrics, carry)), gradients)`, as of `make_loss`.

    Gradients are those of the parameters that are trained, with None in place of frozen ones.
    """
    loss = make_loss(experiment, settings)

    def of_trained(trained: PyTree, kept: PyTree, *rest: Any) -> Any:
        return loss(joined(trained, kept), *rest)

    gradient = jax.value_and_grad(of_trained, has_aux=True)
    frozen = experiment.method.frozen
    return lambda params, *rest: gradient(*split(params, frozen), *rest)


def on_mesh(experiment: Experiment, settings: Training, mesh: Mesh, rules: Rules) -> Experiment:
    """The experiment for programs on the mesh, see `constrained`."""
    placed = state_shardings(experiment, settings, mesh, rules).params
    shapes = state_shapes(experiment, settings).params
    model = constrained(experiment.model, shapes, placed, mesh, settings.batch_size)
    return experiment._replace(model=model)


def _rematerialised(steps: Step | tuple[Step, ...], apart: bool) -> Step | tuple[Step, ...]:
    if isinstance(steps, tuple):
        return tuple(rematerialised(step, apart) for step in steps)
    return rematerialised(steps, apart)


def make_train_step(
    experiment: Experiment, settings: Training, mesh: Mesh, rules: Rules = TENSOR_PARALLEL
) -> TrainStep:
    """Compiles `train_step(state, batch) -> (state, metrics)`; the state is donated.

    Where the loss or the gradient's norm is not finite, the state is returned unchanged.

    Args:
      experiment: the model and the method.
      settings: batch size, optimizer, precision.
      mesh: from `make_mesh`; the batch is split over it.
      rules: where parameters go, see `parallel/rules.py`.

    Returns:
      The step. The batch has "inputs" `[B, ...]` and "labels" `[B]`, and may have "step" int32
      `[]`, its position in the data: then a batch of another position than the state's, after a
      failed step, leaves the state unchanged too. Metrics are float32 `[]`: "loss", "grad_norm"
      (before clipping), "learning_rate", the objective's own; "finite" is bool `[]`.

    Raises:
      ValueError: the batch cannot be split over the devices; while tracing, a loss that is not
        `[B]`, or a metric whose name training uses.
    """
    check_batch_size(settings.batch_size, mesh)
    if experiment.method.carried is not None and experiment.model.training is not None:
        raise ValueError(
            "`experiment.model` has dropout, which a method that keeps rows from update to update "
            "cannot train; set its rate to 0"
        )
    where = state_shardings(experiment, settings, mesh, rules)
    experiment = on_mesh(experiment, settings, mesh, rules)
    optimizer, rate = make_optimizer(settings), learning_rate(settings)
    gradient = make_gradient(experiment, settings)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        inputs, key = batch["inputs"], jax.random.fold_in(state.key, state.step)
        if experiment.augment is not None:
            with jax.named_scope("augment"):
                inputs = experiment.augment(key, inputs)
        if experiment.prepare is not None:
            inputs = experiment.prepare(inputs)
        progress = state.step.astype(jnp.float32) / settings.steps
        loss_key = jax.random.fold_in(key, LOSS)
        (loss, (own, carry)), gradients = gradient(
            state.params, state.carry, inputs, batch["labels"], loss_key, progress
        )
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        with jax.named_scope("optimizer"):
            trained, kept = split(state.params, experiment.method.frozen)
            updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = joined(optax.apply_updates(trained, updates), kept)
        moved = TrainState(state.step + 1, params, opt_state, state.key, carry)
        due = finite & (batch.get("step", state.step) == state.step)
        chosen = lambda new, old: new if new is old else jnp.where(due, new, old)
        state = jax.tree.map(chosen, moved, state)
        return state, {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate(moved.step - 1),
            "finite": finite,
            **own,
        }

    return Compiled(train_step, mesh, donate=[0], out_shardings=(where, replicated(mesh)))
