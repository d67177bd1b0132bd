"""What training carries from step to step, all of it: whoever has it can go on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynexit.core.settings import Training
from dynexit.core.types import Array, Experiment, PyTree
from dynexit.training.optimizer import make_optimizer
from dynexit.training.sharding import Rules, shardings


class TrainState(NamedTuple):
    """The state of a training run.

    Attributes:
      step: int32 `[]`, updates made so far; also the position in the data.
      params: plain dict of float32 arrays.
      opt_state: optax's state.
      key: the key of augmentation; never consumed itself, step s uses `fold_in(key, s)`.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    key: Array


def fresh_state(experiment: Experiment, settings: Training, key: Array) -> TrainState:
    """The state before the first step, a pure function; the key is consumed."""
    init_key, train_key = jax.random.split(key)
    params = experiment.model.init(init_key)
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(settings).init(params), train_key)


def state_shapes(experiment: Experiment, settings: Training) -> TrainState:
    """The shapes of the state, `jax.ShapeDtypeStruct`; nothing is computed."""
    return jax.eval_shape(lambda: fresh_state(experiment, settings, jax.random.key(0)))


def create_state(experiment: Experiment, settings: Training, seed: int, mesh: Mesh, rules: Rules = ()) -> TrainState:
    """The state before the first step, placed on the mesh.

    Args:
      experiment: whose model is initialised.
      settings: the optimizer's.
      seed: equal seeds give equal bits on an equal mesh.
      mesh: from `data_mesh`.
      rules: where parameters go, see `shardings`; default everywhere.
    """
    where = shardings(state_shapes(experiment, settings), mesh, rules)
    return jax.jit(lambda key: fresh_state(experiment, settings, key), out_shardings=where)(jax.random.key(seed))
