"""Fixed points z* = f(z*) per row, with gradients by the implicit function theorem."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.checks import batch_size, described, entries, positive_integer
from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, Num, PyTree, Rows
from dynexit.core.types import Step
from dynexit.criteria.reading import beside, leaf
from dynexit.engine import loops
from dynexit.engine.deferred import deferred_readout
from dynexit.engine.steps import tied_step
from dynexit.solvers.anderson import Mixing, damped

FAR = jnp.finfo(jnp.float32).max  # the residual before the first evaluation
Batch: TypeAlias = Float[Array, "B ..."]
Map: TypeAlias = Callable[[PyTree, Rows, Batch], Batch]
Head: TypeAlias = Callable[[PyTree, Batch], Rows]
Tolerance: TypeAlias = float | np.generic | Num[AnyArray, ""]


class FixedPoint(NamedTuple):
    """The result of a fixed-point iteration, per row.

    Attributes:
      state: z `[B, ...]`, the last iterate; differentiable by the implicit function theorem.
      steps: int32 `[B]`, the number of evaluations of f, 1..most.
      residual: float32 `[B]`, ||f(z) - z|| / ||f(z)|| at the last evaluation; NaN if the row holds
        a NaN, and infinite if the iteration diverged and ||f(z)|| overflows in float32.
      converged: bool `[B]`, whether the residual is below the tolerance; False for a NaN.
    """

    state: Batch
    steps: Int[Array, "B"]
    residual: Float[Array, "B"]
    converged: Bool[Array, "B"]


def fixed_point(
    f: Map,
    params: PyTree,
    x: Rows,
    z: Batch,
    most: int = 40,
    tolerance: Tolerance = 1e-3,
    mixing: Mixing | None = None,
    most_back: int | None = None,
    tolerance_back: Tolerance | None = None,
) -> FixedPoint:
    """Solves z = f(params, x, z) per row, with gradients by the implicit function theorem.

    Row b exits at the first z with ||f(z) - z|| < tolerance ||f(z)||. In the backward pass,
    dL/dparams = w^T df/dparams and dL/dx = w^T df/dx, where w = (df/dz)^T w + dL/dz* is solved by
    the same iteration; dL/dz_0 = 0.

    Args:
      f: `f(params, x, z) -> z` on any number of independent rows. Pass the same function each time,
        without traced arrays in its closure; traced values belong in `params` and `x`.
      params: any tree, shared by the rows.
      x: inputs of the rows, leaves `[B, ...]`.
      z: the first iterate, floating point `[B, ...]`.
      most: the maximal number of evaluations of f.
      tolerance: the relative residual below which a row exits, scalar, traced; with 0 no row exits
        before `most`.
      mixing: the update of the iterate, `damped()` (the plain iteration) or `anderson()`; None for
        the plain iteration.
      most_back, tolerance_back: those of the backward solve; None for those of the forward solve.

    Returns:
      `FixedPoint`.

    Raises:
      TypeError, ValueError: `most` is below 1, `z` is not floating point, f returns another shape
        or type, or the batch is empty.

    Example:
      >>> f = lambda p, x, z: 0.5 * z + p * x
      >>> solve = lambda p: fixed_point(f, p, jnp.ones(1), jnp.zeros(1), tolerance=1e-6).state[0]
      >>> value, slope = jax.value_and_grad(solve)(jnp.float32(3.0))
      >>> print(f"{value:.3f} {slope:.3f}")  # z* = 2 p x
      6.000 2.000

    Source: Bai et al. 2019, deep equilibrium models. `most`, `tolerance` and the settings of
      `anderson` are the defaults of torchdeq, whose backward solve has the tolerance 1e-6.
      Deviation: torchdeq stops the whole batch at an absolute residual and returns the iterate of
      the lowest residual; here each row exits on its own, and the last iterate is returned.
    """
    mixing, most = _chosen(mixing), positive_integer(most, "most")
    most_back = most if most_back is None else positive_integer(most_back, "most_back")
    bound = _scalar(tolerance)
    tolerance_back = bound if tolerance_back is None else tolerance_back
    rows = batch_size((x, z), "x and z")
    if not jnp.issubdtype(jnp.result_type(z), jnp.floating):
        raise TypeError(f"`z` must be floating point, got {jnp.result_type(z)}")
    made = jax.eval_shape(f, params, x, z)
    if (made.shape, made.dtype) != (jnp.shape(z), jnp.result_type(z)):
        raise ValueError(
            f"`f` must return the shape and type of `z`, {z.dtype}{list(z.shape)}, got "
            f"{made.dtype}{list(made.shape)}"
        )
    still = lax.stop_gradient((params, x, z))
    found = _solve(lambda z: f(still[0], still[1], z), still[2], most, bound, mixing, rows)
    return found._replace(
        state=implicit(f, params, x, found.state, most_back, tolerance_back, mixing)
    )


def implicit(
    f: Map,
    params: PyTree,
    x: Rows,
    z: Batch,
    most: int = 40,
    tolerance: Tolerance = 1e-3,
    mixing: Mixing | None = None,
) -> Batch:
    """A given fixed point, with the gradient of the implicit function theorem.

    Args:
      f, params, x: as in `fixed_point`.
      z: the solution of f(params, x, z) = z, `[B, ...]`; it is returned unchanged, and no gradient
        flows to its origin.
      most, tolerance, mixing: those of the backward solve, as in `fixed_point`.

    Returns:
      z `[B, ...]`.

    Example:
      >>> f = lambda p, x, z: 0.5 * z + p * x
      >>> z = lambda p: lax.stop_gradient(2 * p[None])
      >>> g = lambda p: implicit(f, p, jnp.ones(1), z(p), tolerance=1e-6)[0]
      >>> print(f"{jax.grad(g)(jnp.float32(3.0)):.3f}")
      2.000
    """
    return _implicit(
        f, positive_integer(most, "most"), _chosen(mixing), params, x, z, _scalar(tolerance)
    )


def phantom(
    f: Map, params: PyTree, x: Rows, z: Batch, steps: int = 1, damping: float = 0.0
) -> Batch:
    """A few damped iterations from a fixed point, with a cheaper, biased gradient.

    z <- damping z + (1 - damping) f(params, x, z), `steps` times from a constant z. Only these
    iterations have a gradient.

    Args:
      f, params, x, z: as in `implicit`.
      steps: k, at least 1; for large k the gradient converges to that of `implicit`.
      damping: 0 for no damping; torchdeq's tau is 1 - damping.

    Returns:
      z after the steps `[B, ...]`.

    Example:
      >>> f = lambda p, x, z: 0.5 * z + p * x
      >>> g = lambda p, k: phantom(f, p, jnp.ones(1), 2 * p[None], steps=k)[0]
      >>> [float(jax.grad(g)(jnp.float32(3.0), k)) for k in (1, 2, 3)]  # the whole gradient is 2
      [1.0, 1.5, 1.75]

    Source: Geng et al. 2021, "On Training Implicit Models"; torchdeq's default is k = 1.
    """
    z, mix = lax.stop_gradient(z), damped(damping)
    for _ in range(positive_integer(steps, "steps")):
        z, _ = mix.mix(z, f(params, x, z), ())
    return z


def fixed_point_step(f: Map, head: Head, params: PyTree, mixing: Mixing | None = None) -> Step:
    """The iteration as a weight-tied step, whose rows exit by `criteria.residual_below`.

    Args:
      f: as in `fixed_point`; p is `params`.
      head: `head(params, z) -> logits`, `[b, ...]`, of the new iterate.
      params: any tree of arrays.
      mixing: as in `fixed_point`.

    Returns:
      A tied `Step` for states of `begin_fixed_point`, with the output "residual" `[b]` and the
      deferred readout "logits".

    Example:
      >>> import dynexit as dx
      >>> step = fixed_point_step(lambda p, x, z: p * z + x, lambda p, z: z, jnp.float32(0.5))
      >>> state = begin_fixed_point(jnp.array([[1.0], [0.0]]), jnp.zeros((2, 1)))
      >>> dx.run_until(step, state, 40, dx.criteria.residual_below(1e-3)).exit_depth
      Array([10,  1], dtype=int32)
    """
    return deferred_readout(
        tied_step(_Iterate(f, _chosen(mixing)), _residual, params), _Read(head), params
    )


def begin_fixed_point(x: Rows, z: Batch, mixing: Mixing | None = None) -> dict[str, Rows]:
    """The state of `fixed_point_step` before the first iteration.

    Args:
      x, z, mixing: as in `fixed_point`.

    Returns:
      A dict with "input", "z", "residual" `[B]` and "memory". The residual is the largest number of
      the type of z, since `jax_debug_infs` raises an error at an infinity.
    """
    residual = jnp.full(z.shape[0], jnp.finfo(z.dtype).max, z.dtype)
    return {"input": x, "z": z, "residual": residual, "memory": _chosen(mixing).begin(z)}


def relative_residual(z: Batch, value: Batch) -> Float[Array, "B"]:
    """||f(z) - z|| / ||f(z)|| over all axes but the first, float32 `[b]`, without gradients.

    It is 0 if both norms are 0, and infinite if ||f(z)|| overflows: an iterate that diverges has
    not converged.
    """
    z, value = (
        lax.stop_gradient(a).astype(jnp.float32).reshape(a.shape[0], -1) for a in (z, value)
    )
    moved, size = jnp.linalg.norm(value - z, axis=-1), jnp.linalg.norm(value, axis=-1)
    still = (moved == 0) & (size == 0)
    ratio = jnp.where(jnp.isinf(size), jnp.inf, moved / jnp.where(still, 1.0, size))
    return jnp.where(still, 0.0, ratio)


def check_mixing(state: Rows, mixing: Mixing | None) -> None:
    """Refuses a state of `begin_fixed_point` whose memory is not that of `mixing`.

    Raises:
      ValueError: the state is from another mixing.
    """
    if described(state["memory"]) != described(jax.eval_shape(_chosen(mixing).begin, state["z"])):
        raise ValueError(
            "`mixing` must be the one that `begin_fixed_point` was given for this state; pass the "
            "same mixing to both"
        )


def _chosen(mixing: Mixing | None) -> Mixing:
    """The plain iteration for None; refuses anything that is not a mixing."""
    if not isinstance(mixing, Mixing | None):
        raise TypeError(f"`mixing` must be made by `damped()` or `anderson()`, got {mixing!r}")
    return mixing or damped()


def _scalar(tolerance: Tolerance) -> Array:
    found = leaf(tolerance, "tolerance", "[]")
    if found.ndim:
        raise ValueError(f"`tolerance` must be a scalar, got shape {found.shape}")
    return found


@dataclasses.dataclass(frozen=True)
class _Iterate:
    f: Map
    mixing: Mixing

    def __call__(self, params: PyTree, state: PyTree) -> PyTree:
        entries(state, ("input", "memory", "residual", "z"), "`begin_fixed_point`")
        check_mixing(state, self.mixing)
        value = self.f(params, state["input"], state["z"])
        z, memory = self.mixing.mix(state["z"], value, state["memory"])
        residual = relative_residual(state["z"], value).astype(z.dtype)
        return {"input": state["input"], "z": z, "residual": residual, "memory": memory}


@dataclasses.dataclass(frozen=True)
class _Read:
    head: Head

    def __call__(self, params: PyTree, state: PyTree) -> PyTree:
        return {"logits": self.head(params, state["z"])}


def _residual(params: PyTree, state: PyTree) -> PyTree:
    return {"residual": state["residual"]}


def _solve(
    g: Callable[[Array], Array], z: Array, most: int, tolerance: Array, mixing: Mixing, rows: int
) -> FixedPoint:
    """Iterates all rows until the last one has converged; converged rows do not change."""

    def body(carry: tuple[Array, Array, PyTree, FixedPoint]) -> tuple[Any, ...]:
        i, alive, memory, found = carry
        value = g(found.state)
        z, new = mixing.mix(found.state, value, memory)
        residual = relative_residual(found.state, value)
        here = FixedPoint(z, jnp.full(rows, i + 1), residual, residual < tolerance)
        found, memory = jax.tree.map(
            lambda a, b: jnp.where(beside(alive, a), a, b), (here, new), (found, memory)
        )
        return i + 1, alive & ~here.converged, memory, found

    begun = FixedPoint(z, jnp.zeros(rows, jnp.int32), jnp.full(rows, FAR), jnp.zeros(rows, bool))
    carry = (jnp.int32(0), jnp.ones(rows, bool), mixing.begin(z), begun)
    return loops.while_loop(lambda c: (c[0] < most) & c[1].any(), body, carry)[3]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _implicit(
    f: Map, most: int, mixing: Mixing, params: PyTree, x: PyTree, z: Array, tolerance: Array
) -> Any:
    return z


def _implicit_forward(
    f: Map, most: int, mixing: Mixing, params: PyTree, x: PyTree, z: Array, tolerance: Array
) -> tuple[Array, PyTree]:
    return z, (params, x, z, tolerance)


def _implicit_backward(
    f: Map, most: int, mixing: Mixing, saved: PyTree, cotangent: Array
) -> tuple[Any, ...]:
    params, x, z, tolerance = saved
    _, by_z = jax.vjp(lambda z: f(params, x, z), z)
    back = lambda w: by_z(w)[0] + cotangent
    w = _solve(back, cotangent, most, tolerance, mixing, z.shape[0]).state
    _, by_others = jax.vjp(lambda params, x: f(params, x, z), params, x)
    return *by_others(w), jnp.zeros_like(z), jnp.zeros_like(tolerance)


_implicit.defvjp(_implicit_forward, _implicit_backward)
