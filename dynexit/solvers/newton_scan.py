"""Nonlinear recurrences solved in parallel over time by Newton's method with parallel scans."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.checks import batch_size, positive_integer
from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, Num, PyTree, Rows, Size
from dynexit.criteria.reading import beside, leaf
from dynexit.engine import loops

State: TypeAlias = Float[Array, "B D"]
States: TypeAlias = Float[Array, "B L D"]
Cell: TypeAlias = Callable[[PyTree, State, Rows], State]


class Recurrence(NamedTuple):
    """All states of a recurrence, with the convergence of each row.

    Attributes:
      states: h_1..h_L `[B, L, D]`; differentiable, with the exact gradient for a row that has
        converged if f is element-wise.
      iterations: int32 `[B]`, the number of Newton corrections of the row, 0..most.
      residual: float32 `[B]`, max |f(h_{t-1}, x_t) - h_t|; NaN if the row holds a NaN.
      converged: bool `[B]`, whether the residual is at most the tolerance; False for a NaN.
    """

    states: States
    iterations: Int[Array, "B"]
    residual: Float[Array, "B"]
    converged: Bool[Array, "B"]


def newton_scan(
    f: Cell,
    params: PyTree,
    x: Rows,
    h: State,
    most: int = 8,
    tolerance: float | np.generic | Num[AnyArray, ""] = 1e-6,
) -> Recurrence:
    """Solves h_t = f(params, h_{t-1}, x_t), t = 1..L, in a few parallel sweeps over time.

    The first guess is h_t = f(params, 0, x_t), with h_0 instead of 0 for t = 1. One correction is
    r_t = f(h_{t-1}, x_t) - h_t, A_t = df/dh_{t-1}, d_t = A_t d_{t-1} + r_t with d_0 = 0 by an
    associative scan, h += d. After k corrections the first k + 1 states are exact. The backward
    pass computes l_t = g_t + A_{t+1} l_{t+1} by a scan from the end, and
    dL/dparams = sum_t l_t df/dparams.

    Args:
      f: `f(params, h [b, D], x [b, ...]) -> h [b, D]` on any number of rows, element-wise in h:
        entry d of the result depends on entry d of h only, so that one tangent of ones gives the
        whole Jacobian; `check_elementwise` tests it. If f is not element-wise, the states may
        converge, but the gradients are wrong. Pass the same function each time, without traced
        arrays in its closure.
      params: any tree, shared by rows and times.
      x: leaves `[B, L, ...]`.
      h: h_0, floating point `[B, D]`.
      most: the maximal number of corrections; L - 1 are sufficient if nothing overflows.
      tolerance: a row exits at max |r| <= tolerance, scalar, traced, on the scale of h.

    Returns:
      `Recurrence`.

    Raises:
      TypeError, ValueError: `most` is below 1, or shapes do not match.

    Example:
      >>> f = lambda p, h, x: jnp.tanh(p * h + x)
      >>> found = newton_scan(f, jnp.float32(0.5), jnp.ones((1, 64, 1)), jnp.zeros((1, 1)))
      >>> body = lambda h, x: (f(0.5, h, x),) * 2
      >>> sequential = lax.scan(body, jnp.zeros(1), jnp.ones((64, 1)))[1]
      >>> bool(abs(found.states[0] - sequential).max() < 1e-6)
      True
      >>> int(found.iterations[0]) < 8, bool(found.converged[0])
      (True, True)

    Source: Danieli et al. 2025, ParaRNN, and its released code. Deviation: the code makes 3
      corrections without a stopping rule; here a row exits at its residual, or is reported as not
      converged. With large recurrent weights the iteration does not converge: bound them.
    """
    most = positive_integer(most, "most")
    bound = leaf(tolerance, "tolerance", "[]")
    if jnp.ndim(h) != 2 or not jnp.issubdtype(jnp.result_type(h), jnp.floating):
        raise ValueError(
            "`h` must be floating point of shape [B, D], got "
            f"{jnp.result_type(h)}{list(jnp.shape(h))}"
        )
    rows = batch_size((x, h), "x and h")
    lengths = {jnp.shape(a)[1:2] for a in jax.tree.leaves(x)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            f"`x` must have leaves of shape [B, L, ...] with one L, got {sorted(lengths)}"
        )
    ((length,),) = lengths
    if (
        made := jax.eval_shape(f, params, h, jax.tree.map(lambda a: a[:, 0], x))
    ).shape != h.shape or made.dtype != h.dtype:
        raise ValueError(
            f"`f` must return the shape and type of `h`, {h.dtype}{list(h.shape)}, got "
            f"{made.dtype}{list(made.shape)}"
        )
    still = lax.stop_gradient((params, x, h))
    found = _solve(f, *still, most, bound, rows, length)
    return found._replace(states=_attached(f, params, x, h, found.states))


def check_elementwise(f: Cell, params: PyTree, x: Rows, h: State) -> None:
    """Refuses a cell that is not element-wise, |df_d / dh_e| > 0 for some e != d.

    Args:
      f: as in `newton_scan`.
      params: any tree.
      x: inputs of one time, leaves `[B, ...]`.
      h: `[B, D]`, the state at which the derivative is taken; pass a generic one, not zeros.

    Raises:
      ValueError: two entries are coupled; the error names the pair of the largest derivative.

    Example:
      >>> x, h = jnp.ones((2, 3)), jnp.ones((2, 3))
      >>> check_elementwise(lambda p, h, x: jnp.tanh(p * h + x), 0.5, x, h)
      >>> check_elementwise(lambda p, h, x: jnp.tanh(h @ p + x), jnp.ones((3, 3)), x, h)
      Traceback (most recent call last):
        ...
      ValueError: `f` must be element-wise in h, but entry 0 of its result changes with entry 1 of h
    """
    one_row = lambda h, x: f(params, h[None], jax.tree.map(lambda a: a[None], x))[0]
    slopes = np.abs(np.asarray(jax.vmap(jax.jacfwd(one_row))(h, x))).max(axis=0)  # [D, D]
    np.fill_diagonal(slopes, 0.0)
    if slopes.any():
        d, e = np.unravel_index(slopes.argmax(), slopes.shape)
        raise ValueError(
            f"`f` must be element-wise in h, but entry {d} of its result changes with entry {e} "
            "of h"
        )


def affine_scan(slopes: States, shifts: States, reverse: bool = False) -> States:
    """y_t = slopes_t y_{t-1} + shifts_t from y_0 = 0, for all t in log2 L parallel steps.

    Args:
      slopes, shifts: `[B, L, D]`.
      reverse: whether the recurrence runs from the end to the beginning.

    Returns:
      y_1..y_L, `[B, L, D]`.

    Example:
      >>> affine_scan(jnp.full((1, 4, 1), 2.0), jnp.ones((1, 4, 1))).ravel()
      Array([ 1.,  3.,  7., 15.], dtype=float32)
    """
    join = lambda first, then: (then[0] * first[0], then[0] * first[1] + then[1])
    return lax.associative_scan(join, (slopes, shifts), reverse=reverse, axis=1)[1]


def linearised(f: Cell, params: PyTree, x: Rows, h: State, states: States) -> tuple[States, States]:
    """f(h_{t-1}, x_t) and A_t, the diagonal of df/dh_{t-1}, at given states; all `[B, L, D]`."""
    before = jnp.concatenate([h[:, None], states[:, :-1]], axis=1)
    value, diagonal = jax.jvp(
        lambda before: _everywhere(f, params, before, x), (before,), (jnp.ones_like(before),)
    )
    return value, diagonal


def _everywhere(f: Cell, params: PyTree, before: Array, x: PyTree) -> Array:
    """f at all rows and times, with the times as further rows of f."""
    flat = lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])
    return f(params, flat(before), jax.tree.map(flat, x)).reshape(before.shape)


def _solve(
    f: Cell,
    params: PyTree,
    x: PyTree,
    h: Array,
    most: int,
    tolerance: Array,
    rows: Size,
    length: Size,
) -> Recurrence:
    """Newton's method on all rows until the last has converged; converged rows do not change."""

    def judged(states: Array, iterations: Array) -> tuple[Recurrence, tuple[Array, Array]]:
        value, diagonal = linearised(f, params, x, h, states)
        residual = jnp.abs(value - states).max(axis=(1, 2)).astype(jnp.float32)
        return Recurrence(states, iterations, residual, residual <= tolerance), (
            value - states,
            diagonal,
        )

    def body(carry: tuple[Array, Recurrence, tuple[Array, Array]]) -> tuple[Any, ...]:
        k, found, (residuals, diagonal) = carry
        alive = ~found.converged
        moved = found.states + jnp.where(
            beside(alive, residuals), affine_scan(diagonal, residuals), jnp.zeros_like(residuals)
        )
        return k + 1, *judged(moved, found.iterations + alive.astype(jnp.int32))

    first = jnp.concatenate(
        [h[:, None], jnp.zeros((rows, length - 1, h.shape[1]), h.dtype)], axis=1
    )
    begun = judged(_everywhere(f, params, first, x), jnp.zeros(rows, jnp.int32))
    go_on = lambda carry: (carry[0] < most) & ~carry[1].converged.all()
    return loops.while_loop(go_on, body, (jnp.int32(0), *begun))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attached(f: Cell, params: PyTree, x: PyTree, h: Array, states: Array) -> Any:
    return states


def _attached_forward(
    f: Cell, params: PyTree, x: PyTree, h: Array, states: Array
) -> tuple[Array, PyTree]:
    return states, (params, x, h, states)


def _attached_backward(f: Cell, saved: PyTree, cotangent: Array) -> tuple[Any, ...]:
    params, x, h, states = saved
    _, diagonal = linearised(f, params, x, h, states)
    after = jnp.concatenate([diagonal[:, 1:], jnp.zeros_like(diagonal[:, :1])], axis=1)
    adjoint = affine_scan(after, cotangent, reverse=True)
    before = jnp.concatenate([h[:, None], states[:, :-1]], axis=1)
    _, pull = jax.vjp(
        lambda params, x, before: _everywhere(f, params, before, x), params, x, before
    )
    by_params, by_x, by_before = pull(adjoint)
    return by_params, by_x, by_before[:, 0], jnp.zeros_like(states)


_attached.defvjp(_attached_forward, _attached_backward)
