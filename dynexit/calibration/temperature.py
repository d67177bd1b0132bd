"""Temperature scaling with one temperature per exit, fitted in passes that keep no logits."""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.labels import as_labels, check_labels, places_counted
from dynexit.core.shapes import AnyArray, Array, Bool, Float, HostArray, Int, Num, PyTree
from dynexit.core.types import Fit
from dynexit.criteria.reading import Read, read_logits

Logits: TypeAlias = Num[AnyArray, "*b C"]
Labels: TypeAlias = Num[AnyArray, "*b"]
State: TypeAlias = dict[str, HostArray]

CLOSE = 1e-5  # relative change of 1 / T at which an exit is fitted
PASSES = 40


def temperature_fit(read: Read = None, lowest: float = 0.1, highest: float = 10.0) -> Fit:
    """Fits the temperature of each exit that minimises its negative log-likelihood.

    With b = 1 / T the NLL, mean_m lse(b z_m) - b z_m[y_m], is convex in b. Newton's method within a
    bracket finds the zero of its slope, mean_m E_p[z] - z_y. Each pass sums slope and curvature,
    Var_p[z], of every exit. An exit that is right about every row has no finite 1 / T and gets
    `lowest`.

    Args:
      read: `read(output) -> logits [b, C]` or `[b, ..., C]`; None for the output or its "logits".
      lowest, highest: bracket of T, with 1 in it.

    Returns:
      `Fit` of `{"temperature": float32 [E]}`. Places without a label, and those that are not
      `usable`, are left out; the latter are counted in the remarks.

    Raises:
      ValueError: a bracket without 1.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2. Deviation: one
      temperature per exit.
    """
    if not 0 < lowest <= 1 <= highest:
        raise ValueError(
            "`lowest` and `highest` must hold 0 < lowest <= 1 <= highest, got "
            f"{lowest} and {highest}"
        )

    def begin(exits: int) -> State:
        every = functools.partial(np.full, exits)
        return {
            "beta": every(1.0),
            "low": every(1 / highest),
            "high": every(1 / lowest),
            "planned": every(1.0),
            "fitted": every(False),
            "unusable": every(0.0),
            "passes": every(0),
        }

    def measure(state: PyTree, i: Array, output: PyTree, labels: Array) -> dict[str, Array]:
        return slopes(read_logits(output, read), labels, jnp.float32(state["beta"])[i])

    def advance(state: State, sums: State) -> tuple[State, bool]:
        state = _advanced(state, sums)
        return state, bool(state["fitted"].all()) or int(state["passes"][0]) >= PASSES

    def finish(state: State) -> tuple[State, tuple[str, ...]]:
        temperature = np.clip(1 / state["beta"], lowest, highest).astype(np.float32)
        remarks = tuple(
            f"temperature of exit {e}: {count:g} labelled places left out, whose logits are not "
            "finite"
            for e, count in enumerate(state["unusable"])
            if count
        )
        return {"temperature": temperature}, remarks

    return Fit(begin, measure, advance, finish)


def fit_temperature(
    logits: Num[AnyArray, "E *m C"],
    labels: Sequence[Any] | Num[AnyArray, "*m"],
    lowest: float = 0.1,
    highest: float = 10.0,
) -> Float[Array, "E"]:
    """The temperatures of `temperature_fit`, from logits that are in memory.

    Args:
      logits: `[E, M, C]`, or `[E, M, ..., C]` for one label per place, of a calibration split.
        Places that are not `usable` are left out.
      labels: integers `[M]` or `[M, ...]`; -1 (`dynexit.core.labels.IGNORED`) is left out too.
      lowest, highest: bracket of T, with 1 in it.

    Returns:
      float32 `[E]`; the NLL at it is not above that at T = 1.

    Raises:
      TypeError: labels that are not integers.
      ValueError: shapes that do not fit, labels that are no class, or a bracket without 1.

    Example:
      >>> # right in 3 of 4: p should be 0.75
      >>> logits = jnp.array([[[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]])
      >>> temperature = fit_temperature(logits, jnp.array([0, 0, 0, 1]))
      >>> print(f"{temperature[0]:.3f}")  # 2 / ln 3
      1.820
    """
    if jnp.ndim(logits) < 3 or 0 in jnp.shape(logits):
        raise ValueError(
            "`logits` must have shape [E, M, C] or [E, M, ..., C], none of them 0, got "
            f"{jnp.shape(logits)}"
        )
    given = np.asarray(as_labels(labels))
    if given.shape != jnp.shape(logits)[1:-1]:
        wanted = ", ".join(map(str, jnp.shape(logits)[1:-1]))
        raise ValueError(f"`labels` must have shape [M, ...] = [{wanted}], got {given.shape}")
    check_labels(given, jnp.shape(logits)[-1], "labels")
    fit = temperature_fit(None, lowest, highest)
    state, finished = fit.begin(len(logits)), False
    z, classes = jnp.asarray(logits), jnp.asarray(given)
    while not finished:
        terms = _stored(z, classes, np.float32(state["beta"]))
        sums = {name: np.asarray(a, np.float64).sum(axis=1) for name, a in terms.items()}
        state, finished = fit.advance(state, sums)
    return jnp.asarray(fit.finish(state)[0]["temperature"])


def slopes(
    logits: Num[Array, "b *places C"], labels: Int[Array, "b *places"], beta: Float[Array, ""]
) -> dict[str, Float[Array, "b"]]:
    """Slope and curvature of the NLL in b = 1 / T, of each row, summed over its places.

    Args:
      logits: `[b, ..., C]`.
      labels: `[b, ...]`.
      beta: b, `[]`.

    Returns:
      float32 `[b]` each: "slope", "curvature", "places" that are in them and "unusable" ones.
    """
    valid, counted = usable(logits, labels), places_counted(labels)
    z, label = _centred(logits, labels, valid)
    p = lax.optimization_barrier(jax.nn.softmax(beta * z))  # computed once, not in every sum
    z = jnp.where(p == 0, 0.0, z)
    mean = (p * z).sum(axis=-1)
    variance = (p * jnp.square(z - mean[..., None])).sum(axis=-1)
    over = lambda a: jnp.where(valid, a, 0.0).sum(axis=tuple(range(1, labels.ndim)))
    unusable = (counted & ~valid).sum(axis=tuple(range(1, labels.ndim)), dtype=jnp.float32)
    return {
        "slope": over(mean - label),
        "curvature": over(variance),
        "places": over(jnp.ones_like(mean)),
        "unusable": unusable,
    }


def usable(logits: Logits, labels: Labels) -> Bool[Array, "*b"]:
    """Labelled places that have a likelihood, bool `[...]`.

    No logit is NaN or +inf there, and that of the label is finite. A class may be excluded by -inf.

    Args:
      logits: `[..., C]`.
      labels: integers `[...]`.

    Example:
      >>> logits = jnp.array([[1.0, -jnp.inf], [jnp.inf, 0.0], [-jnp.inf, 1.0], [0.0, 1.0]])
      >>> usable(logits, jnp.array([0, 0, 0, -1])).tolist()
      [True, False, False, False]
    """
    broken = (jnp.isnan(logits) | jnp.isposinf(logits)).any(axis=-1)
    return ~broken & jnp.isfinite(_of_label(logits, labels)) & places_counted(labels)


def mean_nll(
    logits: Logits, labels: Labels, temperature: float | Float[AnyArray, ""]
) -> Float[Array, ""]:
    """Mean negative log-likelihood of one exit, over the places that are `usable`.

    -mean_m ln softmax(z_m / T)[y_m].

    Args:
      logits: `[M, C]` or `[M, ..., C]`.
      labels: integers `[M]` or `[M, ...]`; -1 for a place that does not count.
      temperature: T, `[]`.

    Returns:
      float32 `[]`, nats; 0 where no place counts.

    Example:
      >>> # ln 2
      >>> print(f"{mean_nll(jnp.zeros((3, 2)), jnp.array([0, 1, 1]), jnp.float32(2.0)):.4f}")
      0.6931
    """
    classes = jnp.asarray(as_labels(labels))
    valid = usable(logits, classes)
    z, label = _centred(logits, classes, valid)
    nll = jax.nn.logsumexp(z / temperature, axis=-1) - label / temperature
    return jnp.where(valid, nll, 0.0).sum() / jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)


@jax.jit
def _stored(logits: Array, labels: Array, beta: AnyArray) -> dict[str, Array]:
    """`slopes` of every exit, one after the other, leaves `[E, M]`."""
    return lax.map(lambda x: slopes(x[0], labels, x[1]), (logits, beta))


def _advanced(state: State, sums: State) -> State:
    """The next b of every exit.

    After b = 1 it is the bound on the minimum's side, which is the answer where the slope still
    points beyond it. From then on it is Newton's step or, where that leaves the bracket, its
    middle.
    """
    new = {name: value.copy() for name, value in state.items()}
    new["passes"] += 1
    new["unusable"] = np.asarray(sums["unusable"], np.float64)
    for e in np.flatnonzero(~state["fitted"]):
        slope, curvature, beta = sums["slope"][e], sums["curvature"][e], state["beta"][e]
        side, other = ("low", "high") if slope < 0 else ("high", "low")
        if slope == 0 or sums["places"][e] == 0 or beta == state[other][e]:
            new["fitted"][e] = True
            continue
        new[side][e] = beta
        newton = beta - slope / curvature if curvature > 0 else np.inf
        if state["passes"][e] == 0:  # the bound is tried first: Newton converges slowly to one
            new["beta"][e], new["planned"][e] = new[other][e], newton
            continue
        if state["passes"][e] == 1 and side == "high":  # at a bound far from the minimum
            newton = state["planned"][e]
        new["fitted"][e] = abs(newton - beta) <= CLOSE * beta
        inside = new["fitted"][e] or new["low"][e] < newton < new["high"][e]
        new["beta"][e] = newton if inside else np.sqrt(new["low"][e] * new["high"][e])
    return new


def _centred(logits: AnyArray, labels: AnyArray, valid: Array) -> tuple[Array, Array]:
    """float32 logits whose largest is 0, and that of the label; zeros at places not valid."""
    z = jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)
    z = z - z.max(axis=-1, keepdims=True)
    return z, _of_label(z, labels)


def _of_label(values: AnyArray, labels: AnyArray) -> Array:
    """The entry of each label, `[..., C]` to `[...]`; the first class where no label counts."""
    index = jnp.maximum(labels, 0).astype(jnp.int32)[..., None]
    return jnp.take_along_axis(values, index, axis=-1)[..., 0]
