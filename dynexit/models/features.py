"""Every block's output under its stable name."""

import dataclasses

import jax

from dynexit.core.shapes import Array, PyTree, Rows
from dynexit.core.types import Model, Step
from dynexit.engine.run import run_all


def _read_state(step: Step) -> Step:
    def apply(weights: PyTree, i: int | Array, state: PyTree) -> tuple[PyTree, PyTree]:
        state, _ = step.apply(weights, i, state)
        return state, state

    return dataclasses.replace(step, apply=apply)


def features(model: Model, params: PyTree, inputs: Rows) -> dict[str, Rows]:
    """Runs the whole network and returns the state after every block, or after every step where one
    executes several.

    Args:
      model: whose blocks.
      params: its parameters.
      inputs: `[B, ...]`, as `model.embed` takes them.

    Returns:
      `{name: state}`, leaves `[B, ...]`, in the order of depth, each under the name of the last
      block that it has been through; under `jax.jit` what is not used is not computed.

    Example:
      >>> import dynexit as dx, jax.numpy as jnp
      >>> model = dx.models.Mlp(width=8, depth=2).build((4,), 2)
      >>> list(features(model, model.init(jax.random.key(0)), jnp.ones((3, 4))))
      ['block00', 'block01']
    """
    steps, depths = model.steps(params), model.depth
    if not isinstance(depths, tuple):
        steps, depths = (steps,), (depths,)
    state, found, before = model.embed(params, inputs), {}, 0
    for step, depth in zip(steps, depths, strict=True):
        states = run_all(_read_state(step), state, depth)
        for k in range(depth // step.blocks):
            state = jax.tree.map(lambda a, k=k: a[k], states)
            found[model.names[before + (k + 1) * step.blocks - 1]] = state
        before += depth
    return found
