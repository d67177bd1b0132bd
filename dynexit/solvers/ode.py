"""Differential equations as networks: one step of an adaptive solver is one step of the engine."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import batch_size, described, entries
from dynexit.core.shapes import Array, Float, PyTree, Rows
from dynexit.core.types import Step
from dynexit.engine import loops
from dynexit.engine.deferred import deferred_readout
from dynexit.engine.rows import live_in_all, where_rows
from dynexit.engine.steps import tied_step

Field: TypeAlias = Callable[[PyTree, Float[Array, ""], Float[Array, "..."], PyTree], Array]
Head: TypeAlias = Callable[[PyTree, Float[Array, "b ..."]], Rows]


@dataclasses.dataclass(frozen=True)
class Solver:
    """Settings of an ODE solver; equal settings make equal steps, which compile once.

    Args:
      scheme: `scheme() -> diffrax solver`, e.g. `diffrax.Tsit5`, the default for None.
      rtol, atol: tolerances of the error of one step, which determine the length of the next step.
      t1: the end of the integration, which begins at 0.
      first: length of the first step; None to estimate it from the slopes at the start.
      dt: a fixed step length, which replaces the tolerances (`diffrax.Euler` has no error
        estimate); None for adaptive steps.

    Raises:
      ValueError: a tolerance, `t1`, `first` or `dt` is not above 0.
      ImportError: diffrax is not installed; raised when the solver is used.
    """

    scheme: Callable[[], Any] | None = None
    rtol: float = 1e-3
    atol: float = 1e-6
    t1: float = 1.0
    first: float | None = 0.01
    dt: float | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "t1", "first", "dt"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}")

    def parts(self, field: Field, params: PyTree) -> tuple[Any, Any, Any]:
        """diffrax's term, solver and step-size controller."""
        diffrax = _diffrax()
        controller = (
            diffrax.PIDController(rtol=self.rtol, atol=self.atol)
            if self.dt is None
            else diffrax.ConstantStepSize()
        )
        return (
            diffrax.ODETerm(lambda t, y, x: field(params, t, y, x)),
            (self.scheme or diffrax.Tsit5)(),
            controller,
        )


def begin_ode(
    field: Field, params: PyTree, x: Rows, y: Float[Array, "B ..."], solver: Solver
) -> dict[str, Rows]:
    """The state of `ode_step` at t = 0.

    Args:
      field, params, solver: as in `ode_step`.
      x: constant inputs of the rows, leaves `[B, ...]`.
      y: y(0), float32 or float64 `[B, ...]`; time has the same type.

    Returns:
      A dict of leaves `[B, ...]`: "input", "y", "t", "next" (the end of the next step), and the
      states "jump", "scheme" and "controller" of diffrax.

    Raises:
      TypeError, ValueError: y is neither float32 nor float64, the batch is empty, or x and y have
        different numbers of rows.
    """
    batch_size((x, y), "x and y")
    dtype = jnp.result_type(y)
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"`y` must be float32 or float64 (time has the same type), got {dtype}")
    term, scheme, controller = solver.parts(field, params)
    start, end = jnp.zeros((), dtype), jnp.asarray(solver.t1, dtype)
    length = solver.first if solver.dt is None else solver.dt
    step = None if length is None else jnp.asarray(length, dtype)

    def one(x: PyTree, y: Array) -> dict[str, PyTree]:
        then, remembered = controller.init(
            term, start, end, y, step, x, scheme.func, scheme.error_order(term)
        )
        then = jnp.minimum(then, end)
        state = {"t": start, "next": then, "jump": False, "controller": remembered}
        state["scheme"] = scheme.init(term, start, then, y, x)
        return {"input": x, "y": y, **jax.tree.map(jnp.asarray, state)}

    return jax.vmap(one)(x, y)


def ode_step(field: Field, head: Head, params: PyTree, solver: Solver) -> Step:
    """One step of the solver for every row, each with its own step length.

    dy/dt = field(params, t, y, x) from t = 0 to t1. A row at t1 does not change. Each row takes the
    number of steps that its equation needs. With `criteria.gate_above(0.999)` it exits when it has
    reached t1, with a smaller threshold at that fraction of t1.

    Args:
      field: `field(params, t [], y [...], x) -> dy/dt [...]` of one row.
      head: `head(params, y) -> logits`, `[b, ...]`.
      params: any tree of arrays.
      solver: see `Solver`.

    Returns:
      A tied `Step` for states of `begin_ode`, with the output "gate" `[b]`, which is t / t1, and
      the deferred readout "logits". Rejected steps count as depth. A row whose error is NaN makes
      no progress: it shortens its step until the maximal depth, and its gate stays below 1.

    Raises:
      ImportError: diffrax is not installed.
      TypeError, ValueError: when the step runs, the state is not from `begin_ode`, or is from
        `begin_ode` with another solver.

    Example:
      >>> import dynexit as dx
      >>> field, solver = lambda p, t, y, x: -x * y, Solver(rtol=1e-4, atol=1e-7)
      >>> state = begin_ode(field, (), jnp.array([0.1, 10.0]), jnp.ones(2), solver)
      >>> step = ode_step(field, lambda p, y: y, (), solver)
      >>> exits = dx.run_until(step, state, 40, dx.criteria.gate_above(0.999))
      >>> exits.exit_depth  # a stiffer row is deeper
      Array([ 3, 16], dtype=int32)

    Source: Chen et al. 2018, neural ordinary differential equations. The scheme and the step-size
      control are those of diffrax, whose `diffeqsolve` takes the same steps (without a `dt0` it
      also begins with 0.01: release 0.7.2 does not reach its estimate). Gradients, by `run_all`,
      are those of the steps taken.
    """
    return deferred_readout(
        tied_step(_Advance(field, solver), _Arrived(solver), params), _Read(head), params
    )


@dataclasses.dataclass(frozen=True)
class _Advance:
    field: Field
    solver: Solver

    def __call__(self, params: PyTree, state: PyTree) -> PyTree:
        entries(state, ("controller", "input", "jump", "next", "scheme", "t", "y"), "`begin_ode`")
        begun = jax.eval_shape(
            lambda x, y: begin_ode(self.field, params, x, y, self.solver),
            state["input"],
            state["y"],
        )
        if described(begun) != described(state):
            raise ValueError(
                "`solver` must be the one that `begin_ode` was given for this state; pass the same "
                "solver to both"
            )
        term, scheme, controller = self.solver.parts(self.field, params)
        t1, dtype = self.solver.t1, state["t"].dtype
        end = jnp.asarray(t1, dtype)
        near = jnp.asarray(t1 - 100 * np.spacing(dtype.type(t1)), dtype)

        def one(old: PyTree) -> PyTree:
            t, then, y, x = old["t"], old["next"], old["y"], old["input"]
            made, error, _, kept, _ = scheme.step(term, t, then, y, x, old["scheme"], old["jump"])
            if error is not None:
                error = jnp.where(jnp.isnan(error), jnp.inf, error)
            keep, now, later, jump, remembered, _ = controller.adapt_step_size(
                t, then, y, made, x, error, scheme.error_order(term), old["controller"]
            )
            now = jnp.minimum(now, end)
            later = jnp.where(later > near, jnp.where(keep, end, now + 0.5 * (end - now)), later)
            chosen = lambda new, old: jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)
            new = {
                "input": x,
                "y": chosen(made, y),
                "t": now,
                "next": later,
                "controller": remembered,
            }
            new |= {"jump": chosen(jump, old["jump"]), "scheme": chosen(kept, old["scheme"])}
            return new

        def several(old: PyTree) -> PyTree:
            return where_rows(going, jax.vmap(one)(live_in_all(going, old)), old)

        going = state["t"] < end  # rows at t1 do not change, and have no part in gradients
        return loops.maybe(going.any(), several, lambda state: state, state)


@dataclasses.dataclass(frozen=True)
class _Arrived:
    solver: Solver

    def __call__(self, params: PyTree, state: PyTree) -> PyTree:
        return {"gate": state["t"] / self.solver.t1}


@dataclasses.dataclass(frozen=True)
class _Read:
    head: Head

    def __call__(self, params: PyTree, state: PyTree) -> PyTree:
        return {"logits": self.head(params, state["y"])}


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "differential equations need diffrax: pip install 'dynexit[solvers]'"
        ) from error
    return diffrax
