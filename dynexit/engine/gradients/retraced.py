"""Training in compacted tiles: a row that exits takes no part in later steps, forward or backward.

The forward pass runs the compacted executor and records the state with which every row enters a
step, indexed by row. The backward pass sorts the rows by exit, the deepest first. The rows that
took step i are then the first n_i, and tiles of them run the step again:

    sorted by exit   d a f | c b e    step 3 was taken by d a f: one tile of 3, run again from the
                                      recorded states
    gradients        g g g | . . .    of the states after step 3, replaced by those before it;
                                      c b e still hold the gradients of their final states

The gradient of the output of a row enters at the step after which the row exited. Decisions have no
gradient.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jax.tree_util import Partial

from dynexit.core.checks import batch_size, shapes
from dynexit.core.shapes import Array, PyTree, Rows
from dynexit.core.stacking import take
from dynexit.core.stages import Stage, stages_of
from dynexit.core.types import Criterion, Halted, Step
from dynexit.engine import loops
from dynexit.engine.executors.compacted import in_tiles
from dynexit.engine.executors.moves import extended, take_tile, write_tile
from dynexit.engine.executors.tiling import Tiling, default_tiling
from dynexit.engine.recompiles import watched_jit
from dynexit.engine.rows import where_rows
from dynexit.engine.run import run_until, stacked_weights, walk

Apply: TypeAlias = Callable[..., tuple[PyTree, ...]]  # of a step
Floats: TypeAlias = list[Array]  # the floating-point leaves of a tree
# by stage: whether its weights are tied, its blocks a step, its depth, its tiling
Form: TypeAlias = tuple[tuple[bool, ...], tuple[int, ...], tuple[int, ...], Any]


@watched_jit("run_bounded", static_argnames=("depth", "tile"))
def run_retraced(
    step: Step | tuple[Step, ...],
    state: Rows,
    depth: int | tuple[int, ...],
    criterion: Criterion,
    tile: Any,
) -> Halted:
    """`run_until` with a gradient; `depth` and `tile` are hashable.

    The weights of all blocks are selected here, outside of the custom gradient, so that JAX
    differentiates `select`.
    """
    stages = stages_of(step, depth)
    stacked = [stacked_weights(stage.step, stage.steps) for stage in stages]
    tied = tuple(w is None for w in stacked)
    weights = [
        s.step.select(jnp.int32(0)) if w is None else w
        for s, w in zip(stages, stacked, strict=True)
    ]
    blocks = tuple(stage.step.blocks for stage in stages)
    form = tied, blocks, depth if isinstance(depth, tuple) else (depth,), tile
    halted: Any = _run(form, weights, [stage.step.apply for stage in stages], state, criterion)
    return halted if isinstance(step, tuple) else halted._replace(state=halted.state[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
    form: Form,
    weights: list[PyTree],
    applies: list[Apply],
    state: PyTree,
    criterion: Criterion,
) -> Halted:
    tied, blocks, depth, tile = form
    return run_until(
        _steps(tied, blocks, weights, applies), state, depth, criterion, "compacted", tile
    )


def _steps(
    tied: tuple[bool, ...], blocks: tuple[int, ...], weights: list[PyTree], applies: list[Apply]
) -> tuple[Step, ...]:
    return tuple(
        Step(Partial(_constant if t else take, w), apply, b)
        for w, t, apply, b in zip(weights, tied, applies, blocks, strict=True)
    )


def _constant(weights: PyTree, i: Any) -> PyTree:
    return weights


@dataclasses.dataclass(frozen=True)
class _Recording:
    """`apply` that also writes the state with which every row enters to the record of its stage.

    Traced values are arguments. A function that closed over them would outlive their trace in the
    cache of `run_until`.
    """

    stage: int

    def __call__(
        self, apply: Apply, w: PyTree, i: Any, state: PyTree, rows: Array, side: PyTree
    ) -> tuple[PyTree, ...]:
        k = self.stage
        record = jax.tree.map(lambda r, a: r.at[i, rows].set(a, mode="drop"), side[k], state)
        return *apply(w, i, state), (*side[:k], record, *side[k + 1 :])


def _forward(
    form: Form,
    weights: list[PyTree],
    applies: list[Apply],
    state: PyTree,
    criterion: Criterion,
) -> tuple[Halted, tuple[PyTree, ...]]:
    """The run, and the states with which every row entered every step.

    The states have leaves `[steps, B, ...]`, by stage.
    """
    tied, blocks, depth, tile = form
    steps = _steps(tied, blocks, weights, applies)
    stages = stages_of(steps, depth)
    entering = (shapes(state), *walk(stages, state)[0][:-1])
    room = lambda stage, space: jax.tree.map(
        lambda s: jnp.zeros((stage.steps, *s.shape), s.dtype), space
    )
    records = tuple(room(stage, space) for stage, space in zip(stages, entering, strict=True))

    recording = tuple(
        dataclasses.replace(step, apply=Partial(_Recording(k), step.apply))
        for k, step in enumerate(steps)
    )
    halted = run_until(recording, state, depth, criterion, "compacted", tile, side=records)
    return halted._replace(side=None), (
        weights,
        applies,
        state,
        criterion,
        halted.side,
        halted.exit,
    )


def _backward(form: Form, kept: tuple[PyTree, ...], given: Halted) -> tuple[PyTree, ...]:
    weights, applies, state, criterion, records, exit = kept
    tied, blocks, depth, tile = form
    stages = stages_of(_steps(tied, blocks, weights, applies), depth)
    batch = batch_size(state)
    order = jnp.argsort(exit, descending=True).astype(jnp.int32)
    sorted_rows = lambda tree: jax.tree.map(lambda a: a[order], _floats(tree))
    of_outputs, exit = sorted_rows(given.output), exit[order]
    after, of_weights, of_applies = None, list[PyTree](), list[PyTree]()
    for k, stage in reversed(list(enumerate(stages))):
        space = jax.tree.map(lambda a: a[0], records[k])
        if isinstance(tile, tuple):
            chosen = tile[k]
        else:
            chosen = default_tiling(space, batch, tile, stage.step)
        own = sorted_rows(given.state[k])
        after = own if after is None else jax.tree.map(jnp.add, own, after)
        after, w, apply = _retrace(
            stage, weights[k], tied[k], records[k], order, exit, after, of_outputs, chosen
        )
        of_weights.insert(0, _with_integers(w, weights[k]))
        of_applies.insert(0, _with_integers(apply, applies[k]))
    home = jax.tree.map(lambda a: jnp.zeros_like(a).at[order].set(a, unique_indices=True), after)
    none = jax.tree.map(jnp.zeros_like, _floats(criterion))
    return of_weights, of_applies, _with_integers(home, state), _with_integers(none, criterion)


_run.defvjp(_forward, _backward)


def _retrace(
    stage: Stage,
    weights: PyTree,
    tied: bool,
    record: PyTree,
    order: Array,
    exit: Array,
    after: Floats,
    of_outputs: Floats,
    tiling: Tiling,
) -> tuple[Floats, Floats, Floats]:
    """The gradients of the input, the weights and the `apply` of one stage.

    They follow from the gradients of its final states, `after`, and of the outputs, `of_outputs`.
    All are lists of the floating-point leaves. Rows are sorted by decreasing exit.
    """
    batch, last = order.shape[0], stage.steps - 1  # one step may change the state's shape
    tiling = tiling.within(batch)
    after, of_outputs = extended((after, of_outputs), tiling.padding(batch))
    zeros = lambda tree: [jnp.zeros_like(a) for a in _floats(tree)]
    before = after
    if last == 0:
        before = extended(zeros(jax.tree.map(lambda a: a[0], record)), tiling.padding(batch))

    def retrace_step(carry: Any) -> tuple[Any, ...]:
        i, after, of_weights, of_apply = carry
        w = weights if tied else take(weights, i)
        live = (exit >= stage.first + i).sum(dtype=jnp.int32)
        entered = jax.tree.map(lambda a: a[i], record)

        def retrace_tile(carry: Any, size: int) -> tuple[Any, ...]:
            begin, before, of_w, of_apply = carry
            place = begin + jnp.arange(size, dtype=jnp.int32)
            row = order[jnp.minimum(place, live - 1)]  # padding rows retrace the last live row
            here = place < live
            exits = here & (exit.at[place].get(mode="clip") == stage.first + i)
            part = lambda tree: take_tile(tree, begin, size)
            masked = lambda mask, tree: where_rows(mask, tree, [jnp.zeros_like(a) for a in tree])
            state = jax.tree.map(lambda a: a[row], entered)

            def run(floats: list[Floats]) -> tuple[Floats, Floats]:
                apply, w_tile, s = (
                    _put(f, t) for f, t in zip(floats, (stage.step.apply, w, state), strict=True)
                )
                new, output = apply(w_tile, i, s)
                return _floats(new), _floats(output)

            _, pull = jax.vjp(run, [_floats(stage.step.apply), _floats(w), _floats(state)])
            ((d_apply, d_w, d_state),) = pull(
                (masked(here, part(after)), masked(exits, part(of_outputs)))
            )
            before = write_tile(before, where_rows(here, d_state, part(before)), begin)
            add = functools.partial(jax.tree.map, jnp.add)
            return begin + size, before, add(of_w, d_w), add(of_apply, d_apply)

        carry = jnp.int32(0), after if last else before, zeros(w), of_apply
        ends = tiling.ends(live, batch)
        _, new, of_w, of_apply = in_tiles(retrace_tile, carry, tiling.sizes, ends)
        gather = (lambda a, b: a + b) if tied else (lambda a, b: a.at[i].set(b))
        return i - 1, new, jax.tree.map(gather, of_weights, of_w), of_apply

    deepest = jnp.clip(exit[0] - stage.first, -1, last)
    carry = (jnp.int32(0) if last == 0 else deepest), after, zeros(weights), zeros(stage.step.apply)
    _, new, of_weights, of_apply = (
        retrace_step(carry)
        if last == 0
        else loops.while_loop(lambda carry: carry[0] >= 0, retrace_step, carry)
    )
    new = [a[:batch] for a in new]
    new = where_rows(exit >= stage.first, new, [jnp.zeros_like(a) for a in new])
    return new, of_weights, of_apply


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)


def _floats(tree: PyTree) -> Floats:
    """The leaves that have gradients."""
    return [
        a
        for a in jax.tree.leaves(tree)
        if getattr(a, "dtype", None) != dtypes.float0 and _is_float(a)
    ]


def _put(floats: Floats, tree: PyTree) -> PyTree:
    """The tree with its floating-point leaves replaced by `floats`."""
    new = iter(floats)
    return jax.tree.map(lambda a: next(new) if _is_float(a) else a, tree)


def _with_integers(floats: Floats, tree: PyTree) -> PyTree:
    """Gradients in the structure of `tree`; those of integers have the dtype float0."""
    new = iter(floats)
    return jax.tree.map(
        lambda a: (
            loops.summed_like(next(new), a)
            if _is_float(a)
            else np.zeros(jnp.shape(a), dtypes.float0)
        ),
        tree,
    )
