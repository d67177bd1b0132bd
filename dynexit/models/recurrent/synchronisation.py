"""Synchronisation of pairs of neurons: a decaying sum of their products, updated at every tick."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.shapes import AnyArray, Array, Float, PyTree, Rows

Pairing = Literal["random", "first_last"]
Pairs = tuple[tuple[int, ...], tuple[int, ...]]
LARGEST_DECAY = 15.0


@jax.custom_vjp
def decay_in_range(decay: Float[AnyArray, "pairs"]) -> Float[Array, "pairs"]:
    """clip(decay, 0, 15), with the gradient of a projection onto that interval.

    Outside the interval the gradient passes where a descent along it leads back inside. A plain
    clip has no gradient there, so a decay that one update has made negative would stay negative.
    """
    return jnp.clip(decay, 0.0, LARGEST_DECAY)


def _decay_forward(decay: Array) -> tuple[Array, Array]:
    return decay_in_range(decay), decay


def _decay_backward(decay: Array, slope: Array) -> tuple[Array]:
    outward = ((decay < 0) & (slope > 0)) | ((decay > LARGEST_DECAY) & (slope < 0))
    return (jnp.where(outward, 0.0, slope).astype(slope.dtype),)


decay_in_range.defvjp(_decay_forward, _decay_backward)


def decays_in_range(params: PyTree) -> PyTree:
    """Parameters with the decays in range, once for all ticks.

    The gradient that `decay_in_range` filters is then the sum over the ticks.
    """
    tick = {
        name: decay_in_range(a) if name.endswith("_decay") else a
        for name, a in params["tick"].items()
    }
    return {**params, "tick": tick}


def accumulated(
    state: Rows, name: str, z: Float[Array, "B D"], pairs: Pairs, decay: Float[Array, "pairs"]
) -> dict[str, Float[Array, "B pairs"]]:
    """alpha = r alpha + z_i z_j, beta = r beta + 1, r = exp(-decay); float32 `[b, pairs]`."""
    left, right = (z[:, np.asarray(side)].astype(jnp.float32) for side in pairs)
    r = jnp.exp(-decay.astype(jnp.float32))[None]
    alpha, beta = state[f"{name}_alpha"], state[f"{name}_beta"]
    return {f"{name}_alpha": r * alpha + left * right, f"{name}_beta": r * beta + 1.0}


def synchronisation(state: Rows, name: str) -> Float[Array, "B pairs"]:
    """S = alpha / sqrt(beta), float32 `[b, pairs]`; with decay 0, sum_t z_i z_j / sqrt(t)."""
    return state[f"{name}_alpha"] / jnp.sqrt(state[f"{name}_beta"])


def neuron_pairs(
    width: int, action: int, out: int, pairing: Pairing, self_pairs: int, seed: int
) -> tuple[Pairs, Pairs]:
    """The pairs (i, j) of neurons for the query and for the answer; fixed by the arguments.

    Example:
      >>> neuron_pairs(5, 2, 2, "first_last", 0, seed=0)
      (((3, 3, 4), (3, 4, 4)), ((0, 0, 1), (0, 1, 1)))
    """
    random = np.random.default_rng(seed)

    def chosen(count: int, first: int) -> Pairs:
        if pairing == "first_last":
            left, right = (first + side for side in np.triu_indices(count))
        else:
            left, right = random.integers(0, width, (2, count))
            right[:self_pairs] = left[:self_pairs]
        return tuple(left.tolist()), tuple(right.tolist())

    return chosen(action, width - action), chosen(out, 0)
