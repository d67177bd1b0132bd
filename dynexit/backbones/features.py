"""Every block's output under its stable name."""

import jax

from dynexit.core.types import Array, Model, PyTree, Step
from dynexit.exits import run_all


def _read_state(step: Step) -> Step:
    def apply(weights, i, state):
        state, _ = step.apply(weights, i, state)
        return state, state

    return Step(step.select, apply, step.blocks)


def features(model: Model, params: PyTree, inputs: Array) -> dict[str, PyTree]:
    """Runs the whole network and returns the state after every block.

    Args:
      model: whose blocks.
      params: its parameters.
      inputs: `[B, ...]`, as `model.embed` takes them.

    Returns:
      `{name: state}`, leaves `[B, ...]`, in the order of depth; under `jax.jit` what is not used is not computed.

    Example:
      >>> from dynexit.backbones import mlp
      >>> import jax.numpy as jnp
      >>> model = mlp((4,), 2, width=8, depth=2)
      >>> list(features(model, model.init(jax.random.key(0)), jnp.ones((3, 4))))
      ['block00', 'block01']
    """
    steps, depths = model.steps(params), model.depth
    if not isinstance(depths, tuple):
        steps, depths = (steps,), (depths,)
    state, found = model.embed(params, inputs), []
    for step, depth in zip(steps, depths, strict=True):
        states = run_all(_read_state(step), state, depth)
        found += [jax.tree.map(lambda a, k=k: a[k], states) for k in range(depth)]
        state = found[-1]
    return dict(zip(model.names, found, strict=True))
