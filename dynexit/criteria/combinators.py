"""Criteria made of criteria: `any_of`, `all_of`, `not_before`, `consecutive`, `decaying`."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from dynexit.core.shapes import AnyArray, Array, Float, Int, Num, PyTree, Shaped, Size
from dynexit.core.types import Criterion

Count: TypeAlias = int | np.generic | Int[AnyArray, ""]
Number: TypeAlias = float | np.generic | Num[AnyArray, "..."]
Trees: TypeAlias = tuple[PyTree, ...]
Function: TypeAlias = Callable[[Array, PyTree, PyTree], tuple[Any, PyTree]]  # score or decide


def any_of(*criteria: Criterion) -> Criterion:
    """A row exits when at least one of the criteria holds.

    Args:
      criteria: at least one; all of them see every exit.

    Returns:
      `Criterion` whose scores and memories are tuples of the criteria's.

    Raises:
      TypeError: one of them is not a `Criterion`.
      ValueError: none given, or thresholds for different numbers of exits.

    Example:
      >>> import dynexit as dx
      >>> rule = dx.criteria.any_of(dx.criteria.max_probability_above(0.9), dx.criteria.patience(3))
      >>> logits = jnp.array([[[9.0, 0.0]], [[9.0, 0.0]]])  # [E=2, B=1, C=2]
      >>> dx.replay(rule, logits).exit
      Array([0], dtype=int32)
    """
    return _combined(criteria, _any)


def all_of(*criteria: Criterion) -> Criterion:
    """A row exits at the first exit at which all of the criteria hold.

    Args:
      criteria: at least one; all of them see every exit.

    Returns:
      `Criterion` whose scores and memories are tuples of the criteria's.

    Raises:
      TypeError: one of them is not a `Criterion`.
      ValueError: none given, or thresholds for different numbers of exits.

    Example:
      >>> import dynexit as dx
      >>> rule = dx.criteria.all_of(dx.criteria.max_probability_above(0.9), dx.criteria.patience(1))
      >>> logits = jnp.array([[[9.0, 0.0]], [[9.0, 0.0]], [[9.0, 0.0]]])  # [E=3, B=1, C=2]
      >>> dx.replay(rule, logits).exit
      Array([1], dtype=int32)
    """
    return _combined(criteria, _all)


def not_before(depth: Count, criterion: Criterion) -> Criterion:
    """A row exits when the criterion holds, and not before `depth` exits have been evaluated.

    The criterion sees the earlier exits too: its memory is updated there, its decision is not
    followed.

    Args:
      depth: exits evaluated at least, 1 for no restriction; an integer, traced.
      criterion: any.

    Returns:
      `Criterion` with the scores and memories of the given one.

    Raises:
      TypeError: `depth` is not an integer, `criterion` not a `Criterion`.
      ValueError: `depth` is below 1 or not a scalar.

    Example:
      >>> import dynexit as dx
      >>> rule = dx.criteria.not_before(2, dx.criteria.max_probability_above(0.9))
      >>> logits = jnp.array([[[9.0, 0.0]], [[9.0, 0.0]], [[9.0, 0.0]]])  # [E=3, B=1, C=2]
      >>> dx.replay(rule, logits).exit
      Array([1], dtype=int32)
    """
    depth = count(depth, "depth")
    if jnp.ndim(depth):
        raise ValueError(f"`depth` must be a scalar, got shape {jnp.shape(depth)}")
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    return dataclasses.replace(criterion, decide=Partial(_late, depth, criterion.decide))


def consecutive(times: Count, criterion: Criterion) -> Criterion:
    """A row exits once the criterion has held at several consecutive exits.

    Args:
      times: consecutive exits, 1 for no restriction; an integer, traced.
      criterion: any.

    Returns:
      `Criterion` with the scores of the given one; its decision remembers the number of consecutive
      exits at which the given one held, int32 `[b]`.

    Raises:
      TypeError: `times` is not an integer, `criterion` not a `Criterion`.
      ValueError: `times` is below 1 or not a scalar.

    Example:
      >>> import dynexit as dx
      >>> rule = dx.criteria.consecutive(2, dx.criteria.max_probability_above(0.9))
      >>> # [E=5, B=1, C=2]
      >>> logits = jnp.array([[[9.0, 0.0]], [[0.0, 0.0]], [[9.0, 0.0]], [[9.0, 0.0]], [[9.0, 0.0]]])
      >>> dx.replay(rule, logits).exit
      Array([3], dtype=int32)
    """
    times = count(times, "times")
    if jnp.ndim(times):
        raise ValueError(f"`times` must be a scalar, got shape {jnp.shape(times)}")
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    return dataclasses.replace(
        criterion,
        decide=Partial(_in_a_row, times, criterion.decide),
        init_decide=Partial(_start_streak, criterion.init_decide),
    )


def scaled_decay(
    threshold: Number, time: Number, steps: Number, tau: Number
) -> Float[Array, "..."]:
    """CALM's decay as released: threshold (0.9 + 0.1 exp(-tau time / steps)).

    Args:
      threshold: at time 0, scalar or `[n]`.
      time: 0..steps, scalar or `[n]`.
      steps: length of the whole.
      tau: rate; the released code has 4.

    Returns:
      float32 of the common shape.

    Example:
      >>> print(f"{scaled_decay(0.5, 16, 64, 4.0):.4f}")
      0.4684

    Source: t5x `contrib/calm`; see `clipped_decay` for the paper's form.
    """
    return jnp.float32(threshold) * (0.9 + 0.1 * _fade(time, steps, tau))


def clipped_decay(
    threshold: Number, time: Number, steps: Number, tau: Number
) -> Float[Array, "..."]:
    """CALM's decay as printed: 0.9 threshold + 0.1 exp(-tau time / steps), clipped to 0..1.

    Args:
      threshold: scalar or `[n]`, in 0..1.
      time, steps, tau: as in `scaled_decay`.

    Returns:
      float32 of the common shape.

    Example:
      >>> print(f"{clipped_decay(0.5, 16, 64, 4.0):.4f}")
      0.4868

    Source: Schuster et al. 2022, CALM, section 3.4.
    """
    return jnp.clip(0.9 * jnp.float32(threshold) + 0.1 * _fade(time, steps, tau), 0.0, 1.0)


def decaying(
    make: Callable[[Float[Array, "..."]], Criterion],
    threshold: Number,
    steps: int,
    tau: Number = 4.0,
    time: Number | None = None,
    decay: Callable[..., Float[Array, "..."]] = scaled_decay,
) -> Criterion:
    """A criterion whose threshold falls with the exits, or with a given time.

    Such a time is, for example, the position of a token.

    Args:
      make: `make(threshold) -> Criterion`, e.g. `max_probability_above`; a falling threshold makes
        an `_above` rule exit more readily and a `_below` rule less.
      threshold: at the start, scalar.
      steps: E where `time` is None (the thresholds then are `[E-1]`, exit i at time i); otherwise
        the longest time.
      tau: rate.
      time: the present time 0..steps, scalar, traced; None for the exits.
      decay: `decay(threshold, time, steps, tau)`, `scaled_decay` or `clipped_decay`.

    Returns:
      What `make` gives for the decayed threshold.

    Raises:
      ValueError: `steps` below 1.

    Example:
      >>> import dynexit as dx
      >>> rule = dx.criteria.decaying(dx.criteria.margin_above, 0.9, steps=4)
      >>> rule.exits
      4

    Source: Schuster et al. 2022, CALM, section 3.4, where time is the position t of the token among
      N. Deviation: decay over exits.
    """
    if not isinstance(steps, Tracer) and steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}")
    if time is None:
        time = jnp.arange(steps - 1, dtype=jnp.float32)
    return make(decay(threshold, time, steps, tau))


def count(value: int | np.generic | Shaped[AnyArray, "..."], name: str) -> Int[Array, "..."]:
    """An argument that counts exits, as an int32 array; tracers are not checked.

    Raises:
      TypeError: not integers.
      ValueError: below 1.
    """
    if isinstance(value, Tracer):
        dtype = value.dtype
    else:
        value = np.asarray(value)
        dtype = value.dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"`{name}` must be an integer, got {dtype}")
    if isinstance(value, np.ndarray) and value.size and value.min() < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value.min()}")
    return jnp.asarray(value, jnp.int32)


def _fade(time: Number, steps: Number, tau: Number) -> Array:
    return jnp.exp(-jnp.float32(tau) * jnp.float32(time) / jnp.float32(steps))


def _agreed_exits(criteria: tuple[Criterion, ...]) -> int | None:
    if not criteria:
        raise ValueError("`criteria` must hold at least one criterion, got none")
    for k, criterion in enumerate(criteria):
        if not isinstance(criterion, Criterion):
            raise TypeError(
                f"`criteria[{k}]` must be a dx.Criterion, got {type(criterion).__name__}"
            )
    exits = {c.exits for c in criteria if c.exits is not None}
    if len(exits) > 1:
        raise ValueError(f"`criteria` must be meant for one number of exits, got {sorted(exits)}")
    return exits.pop() if exits else None


def _combined(criteria: tuple[Criterion, ...], combine: Callable[..., Any]) -> Criterion:
    exits = _agreed_exits(criteria)
    return Criterion(
        Partial(_scores, tuple(c.score for c in criteria)),
        Partial(combine, tuple(c.decide for c in criteria)),
        Partial(_start_all, tuple(c.init_score for c in criteria)),
        Partial(_start_all, tuple(c.init_decide for c in criteria)),
        exits,
    )


def _start_all(inits: tuple[Callable[..., PyTree], ...], *args: Any) -> tuple[PyTree, ...]:
    return tuple(init(*args) for init in inits)


def _each(
    functions: tuple[Function, ...], i: Array, values: Trees, memories: Trees
) -> tuple[Trees, Trees]:
    """What each function makes of its own value and memory: results, and memories."""
    results = [f(i, v, m) for f, v, m in zip(functions, values, memories, strict=True)]
    return tuple(r for r, _ in results), tuple(memory for _, memory in results)


def _scores(
    scores: tuple[Function, ...], i: Array, output: PyTree, memories: Trees
) -> tuple[Trees, Trees]:
    return _each(scores, i, (output,) * len(scores), memories)


def _any(
    decisions: tuple[Function, ...], i: Array, scores: Trees, memories: Trees
) -> tuple[Array, Trees]:
    exits, memories = _each(decisions, i, scores, memories)
    return jnp.stack(exits).any(axis=0), memories


def _all(
    decisions: tuple[Function, ...], i: Array, scores: Trees, memories: Trees
) -> tuple[Array, Trees]:
    exits, memories = _each(decisions, i, scores, memories)
    return jnp.stack(exits).all(axis=0), memories


def _late(
    depth: Array, decide: Function, i: Array, score: PyTree, memory: PyTree
) -> tuple[Array, PyTree]:
    exit, memory = decide(i, score, memory)
    return exit & (i + 1 >= depth), memory


def _start_streak(init: Callable[[Size], PyTree], batch: Size) -> tuple[Array, PyTree]:
    return jnp.zeros(batch, jnp.int32), init(batch)


def _in_a_row(
    times: Array, decide: Function, i: Array, score: PyTree, memory: tuple[Array, PyTree]
) -> tuple[Array, tuple[Array, PyTree]]:
    streak, inner = memory
    exit, inner = decide(i, score, inner)
    streak = jnp.where(exit, streak + 1, 0)
    return streak >= times, (streak, inner)
