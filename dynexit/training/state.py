"""The complete state of training, sufficient to resume."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from dynexit.core.settings import Training
from dynexit.core.shapes import Array, Int, Key, PyTree
from dynexit.core.types import Experiment
from dynexit.training.frozen import split
from dynexit.training.optimizer import make_optimizer
from dynexit.training.parallel.constants import Compiled
from dynexit.training.parallel.mesh import AnyMesh, replicated
from dynexit.training.parallel.placement import carried, drawn, like_params, shardings
from dynexit.training.parallel.rules import TENSOR_PARALLEL, Rules


class TrainState(NamedTuple):
    """The state of a training run.

    Attributes:
      step: int32 `[]`, updates made so far; also the position in the data.
      params: plain dict of float32 arrays.
      opt_state: optax's state, of the parameters that are trained (`Method.frozen`).
      key: the key of augmentation; step s uses `fold_in(key, s)`.
      carry: rows that stay in their slots from step to step; None where the method has no carry.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    key: Key[Array, ""]
    carry: PyTree = None


def initial_state(experiment: Experiment, settings: Training, key: Key[Array, ""]) -> TrainState:
    """The state before the first step; the key is consumed."""
    init_key, train_key = jax.random.split(key)
    return _state(experiment, settings, experiment.model.init(init_key), train_key)


def _state(
    experiment: Experiment, settings: Training, params: PyTree, key: Key[Array, ""]
) -> TrainState:
    carry = _free_slots(experiment, settings, params) if experiment.method.carried else None
    trained, _ = split(params, experiment.method.frozen)
    opt_state = make_optimizer(settings).init(trained)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, key, carry)


def _free_slots(experiment: Experiment, settings: Training, params: PyTree) -> PyTree:
    assert experiment.method.carried is not None
    batch = experiment.train.batch(0, 0, settings.batch_size)
    inputs, labels = jax.tree.map(jnp.zeros_like, (batch["inputs"], batch["labels"]))
    if experiment.prepare is not None:
        inputs = experiment.prepare(inputs)
    compute = jnp.dtype(settings.precision)
    return experiment.method.carried.begin(
        experiment.model, cast(params, compute), cast(inputs, compute), labels
    )


def cast(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """Casts floating-point leaves to `dtype`; integers and keys are unchanged."""
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )


def state_shapes(experiment: Experiment, settings: Training) -> TrainState:
    """The shapes of the state, `jax.ShapeDtypeStruct`, by abstract evaluation."""
    key = jax.eval_shape(jax.random.key, 0)
    params = jax.eval_shape(experiment.model.init, key)  # JAX traces a function and shapes once
    return jax.eval_shape(lambda *of: _state(experiment, settings, *of), params, key)


def state_shardings(
    experiment: Experiment,
    settings: Training,
    mesh: AnyMesh,
    rules: Rules = TENSOR_PARALLEL,
) -> Any:
    """Where every leaf of the state is: parameters and moments by the rules, slots by rows.

    Returns:
      A `TrainState` of shardings; that of the step and that of the key are for the whole field.

    Raises:
      ValueError: as `placement.shardings`.
    """
    shapes = state_shapes(experiment, settings)
    params = shardings(shapes.params, mesh, rules)
    moments = like_params(shapes.opt_state, shapes.params, params, mesh)
    slots = carried(shapes.carry, settings.batch_size, mesh)
    fields: Any = TrainState
    return fields(replicated(mesh), params, moments, replicated(mesh), slots)


def create_state(
    experiment: Experiment,
    settings: Training,
    seed: int,
    mesh: Mesh,
    rules: Rules = TENSOR_PARALLEL,
) -> TrainState:
    """The state before the first step, initialised on the mesh.

    Each device computes its own parts; no parameter that is split is whole on any device.

    Args:
      experiment: its model is initialised.
      settings: of the optimizer.
      seed: equal seeds give equal bits on an equal mesh.
      mesh: from `make_mesh`.
      rules: where parameters go, see `parallel/rules.py`.
    """
    return init_program(experiment, settings, mesh, rules)(jax.random.key(seed))


def init_program(
    experiment: Experiment, settings: Training, mesh: Mesh, rules: Rules = TENSOR_PARALLEL
) -> Compiled:
    """`init(key) -> TrainState`, compiled for the mesh."""
    where = state_shardings(experiment, settings, mesh, rules)
    draw = drawn(state_shapes(experiment, settings).params, where.params)

    def init(key: Key[Array, ""]) -> TrainState:
        state = initial_state(experiment, settings, key)
        return state._replace(params=jax.lax.with_sharding_constraint(state.params, draw))

    return Compiled(init, mesh, (), where)
