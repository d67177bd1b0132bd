"""Updates of a fixed-point iteration from z and f(z): plain, damped, or Anderson acceleration."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import Array, Float, PyTree
from dynexit.criteria.reading import beside

Iterate: TypeAlias = Float[Array, "b ..."]


class Mixing(NamedTuple):
    """The update of a fixed-point iteration; equal settings make equal objects, which compile once.

    Attributes:
      begin: `begin(z [b, ...]) -> memory`, leaves `[b, ...]`.
      mix: `mix(z, f(z), memory) -> (next z, memory)`, with independent rows.
    """

    begin: Callable[[Iterate], PyTree]
    mix: Callable[[Iterate, Iterate, PyTree], tuple[Iterate, PyTree]]


def damped(damping: float = 0.0) -> Mixing:
    """z <- damping z + (1 - damping) f(z); with damping 0 the plain iteration.

    It also converges for some f for which the plain iteration oscillates and diverges. An f with
    derivative -2 needs a damping above 1/3.

    Args:
      damping: at least 0 and below 1.

    Returns:
      `Mixing` without memory.

    Raises:
      ValueError: `damping` is out of range.

    Example:
      >>> print(damped(0.25).mix(jnp.array([4.0]), jnp.array([8.0]), ())[0])
      [7.]
    """
    if not 0 <= damping < 1:
        raise ValueError(f"`damping` must be at least 0 and below 1, got {damping}")
    return Mixing(_nothing, _Damped(float(damping)))


def anderson(memory: int = 5, ridge: float = 1e-4, beta: float = 1.0) -> Mixing:
    """Anderson acceleration: mixes the last iterates with the weights of the smallest residual.

    a = argmin ||sum_j a_j g_j||^2 + ridge s ||a||^2 with sum_j a_j = 1, over the last m iterates,
    where g_j = f(z_j) - z_j and s is the mean of ||g_j||^2. z <- sum_j a_j (z_j + beta g_j).

    Args:
      memory: m, the number of iterates kept per row (2 m times the size of z).
      ridge: the regularisation, relative to the size of the residuals.
      beta: the weight of f(z_j) against z_j; 1 for the values of f only.

    Returns:
      `Mixing` whose memory holds the last m iterates and residuals, float32 `[b, m, n]`, and their
      number, int32 `[b]`.

    Raises:
      TypeError, ValueError: `memory` is below 1, `ridge` is not above 0, or `beta` is outside
        (0, 1].

    Example:
      >>> mixing, f = anderson(2), lambda z: -0.9 * z + 1.9  # f(1) = 1
      >>> z = jnp.zeros((1, 1))
      >>> kept = mixing.begin(z)
      >>> for _ in range(3):
      ...     z, kept = mixing.mix(z, f(z), kept)
      >>> bool(abs(z - 1).max() < 1e-3), bool(abs(f(f(f(0.0))) - 1) > 0.7)
      (True, True)

    Source: Walker and Ni 2011; as in torchdeq (m = 6, ridge 1e-4, beta 1). Deviation: the ridge of
      torchdeq is absolute. Near convergence it outweighs the residuals, so that all weights are
      equal. Here it is relative to the residuals.
    """
    positive_integer(memory, "memory")
    if not ridge > 0:
        raise ValueError(
            f"`ridge` must be above 0 (without it the solve may be singular), got {ridge}"
        )
    if not 0 < beta <= 1:
        raise ValueError(f"`beta` must be above 0 and up to 1, got {beta}")
    return Mixing(_Kept(memory), _Anderson(memory, float(ridge), float(beta)))


def _nothing(z: Array) -> tuple[()]:
    return ()


@dataclasses.dataclass(frozen=True)
class _Damped:
    damping: float

    def __call__(self, z: Array, value: Array, memory: PyTree) -> tuple[Array, PyTree]:
        return (value + self.damping * (z - value) if self.damping else value), memory


@dataclasses.dataclass(frozen=True)
class _Kept:
    memory: int

    def __call__(self, z: Array) -> PyTree:
        empty = jnp.zeros((z.shape[0], self.memory, z[0].size), jnp.float32)
        return {"iterates": empty, "residuals": empty, "count": jnp.zeros(z.shape[0], jnp.int32)}


@dataclasses.dataclass(frozen=True)
class _Anderson:
    memory: int
    ridge: float
    beta: float

    def __call__(self, z: Array, value: Array, memory: PyTree) -> tuple[Array, PyTree]:
        flat = z.astype(jnp.float32).reshape(z.shape[0], -1)
        places = jnp.arange(self.memory, dtype=jnp.int32)
        here = (places[None] == (memory["count"] % self.memory)[:, None])[..., None]
        residual = value.astype(jnp.float32).reshape(flat.shape) - flat
        iterates = jnp.where(here, flat[:, None], memory["iterates"])
        residuals = jnp.where(here, residual[:, None], memory["residuals"])
        count = memory["count"] + 1
        full = (places[None] < count[:, None]).astype(jnp.float32)  # [b, m]
        # The solution of min a^T G a with sum(a) = 1 is G^-1 1 over its sum. For an empty entry of
        # the memory, the rows of G are those of the identity.
        products = jnp.einsum("bmn,bkn->bmk", residuals, residuals)
        scale = jnp.einsum("bmm->b", products) / full.sum(-1)
        eye = jnp.eye(self.memory, dtype=jnp.float32)[None]
        gram = products / beside(jnp.where(scale == 0, 1.0, scale), products) + self.ridge * eye
        gram = gram + eye * (1 - full)[..., None]
        weights = jnp.linalg.solve(gram, full[..., None])[..., 0] * full
        weights = weights / weights.sum(-1, keepdims=True)
        mixed = jnp.einsum("bm,bmn->bn", weights, iterates + self.beta * residuals)
        return mixed.reshape(z.shape).astype(z.dtype), {
            "iterates": iterates,
            "residuals": residuals,
            "count": count,
        }
