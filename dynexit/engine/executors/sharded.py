"""Rows sharded over devices: each device ends when its rows have exited; survivors may be moved.

Without rebalancing the devices do not communicate, and a batch takes as long as the device with the
most work. If that is much more than the mean, survivors are redistributed round-robin after chosen
depths. The k-th live row of all devices is assigned to device k mod D, so the numbers of rows of
two devices differ by at most one:

    device 0   a b c d        after rebalancing   a e h
    device 1   e f g                              b f i
    device 2   .                                  c g
    device 3   h i                                d

A device sends at most B / D^2 rows (rounded up) to another one, so the exchange is one `all_to_all`
of fixed shape. A row that exits stays on its device until the end. Then the rows are put back into
the order of the batch.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from dynexit.core.checks import batch_size
from dynexit.core.shapes import Array, PyTree, Rows
from dynexit.core.stages import Stage, depth_of, stages_of
from dynexit.core.types import Criterion, Halted, Memory, Step
from dynexit.criteria.memory import first_memory
from dynexit.engine.collectives import compile_sharded
from dynexit.engine.counts import total
from dynexit.engine.executors.compacted import (
    Carry,
    all_live,
    by_position,
    plan_for,
    run_loop,
    with_room,
)
from dynexit.engine.executors.moves import empty_rows, order_by_group
from dynexit.engine.executors.tiling import Tiling, default_tiling
from dynexit.engine.recompiles import watched_jit
from dynexit.engine.rows import Job, begin, exit_depth, last_exit
from dynexit.engine.run import checked_tile, run_until, walk


def run_sharded(
    step: Step,
    state: Rows,
    depth: int | None = None,
    criterion: Criterion | None = None,
    mesh: Mesh | None = None,
    axis: str = "data",
    rebalance: Sequence[int] = (),
    tile: int | Tiling | None = None,
    keep_state: bool = True,
) -> Halted:
    """Runs the compacted executor of `run_until` on rows sharded over a mesh axis.

    A device ends when its own rows have exited. Thresholds are replicated, and so are weights,
    except along other axes of the mesh: weights that are split along these keep their shardings,
    and XLA inserts the sums (tensor parallelism). The compiled program is read, and refused if it
    would make devices wait for a device that has ended. Inside of `jax.jit`, where shardings are
    not known, weights are replicated. For stages of different shapes call `run_until` inside
    `jax.shard_map`.

    Args:
      step: one step; its weights are placed as described above.
      state: leaves `[B, ...]`; B is divisible by D, the number of devices of the axis.
      depth, criterion, keep_state: as in `run_until`.
      mesh: the devices.
      axis: the mesh axis over which the rows are sharded.
      rebalance: depths in blocks after which survivors are redistributed evenly, increasing and
        below `depth`. Each costs one exchange of the states of survivors; `docs/engine.md`
        describes when it is worth its cost.
      tile: as in `run_until`, for the rows of one device.

    Returns:
      `Halted` in the order of the batch, sharded over the axis; `rows_executed` is `[D]`, one entry
      per device.

    Raises:
      TypeError, ValueError: as `run_until`; the step is a sequence, the axis is unknown, B is not
        divisible by D, `rebalance` is not increasing or not after a whole step, or weights are
        split so that devices would wait for one that has ended.

    Example:
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.ones(3))
      >>> above = dx.criteria.gate_above(2.5, read=lambda output: output)
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> dx.run_sharded(step, jnp.array([0.0, 1.0, 2.0]), 3, above, mesh).exit_depth
      Array([3, 2, 1], dtype=int32)
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    if isinstance(step, (tuple, list)):
        raise TypeError(
            f"`step` must be one dx.Step, got a sequence of {len(step)}: for stages call "
            "`dx.run_until` inside `jax.shard_map`"
        )
    (stage,) = stages_of(step, depth)
    if not isinstance(mesh, Mesh):
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh, got {type(mesh).__name__}")
    if axis not in mesh.axis_names:
        raise ValueError(f"`axis` must be one of the mesh's {mesh.axis_names}, got {axis!r}")
    rows, devices = batch_size(state), mesh.shape[axis]
    if rows % devices:
        raise ValueError(
            f"`state` has {rows} rows, which the {devices} devices of axis {axis!r} do not divide"
        )
    segments = _segments(stage, rebalance)
    tile = checked_tile(tile, 1)
    auto = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    state = jax.device_put(state, NamedSharding(auto, P(axis)))
    place = lambda tree: jax.tree.map(lambda a: _placed(a, auto, axis), tree)
    step, rule = place(step), place(criterion)
    static = depth_of(step, depth), auto, axis, segments, tile, keep_state
    run = functools.partial(_call, step, state, rule, static)
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return run()
    with jax.sharding.use_abstract_mesh(auto.abstract_mesh):  # in place of that of `jax.set_mesh`
        halted = run()
    return jax.device_put(halted, NamedSharding(mesh, P(axis)))


def _segments(stage: Stage, rebalance: Sequence[int]) -> tuple[int, ...]:
    """The bounds of the segments between exchanges, in steps."""
    depths, blocks = list(rebalance), stage.step.blocks
    ordered = all(a < b for a, b in zip([0, *depths], [*depths, stage.steps * blocks], strict=True))
    if not ordered or any(not isinstance(d, int) or d % blocks for d in depths):
        raise ValueError(
            f"`rebalance` must be increasing depths within 1..{stage.steps * blocks - 1}, "
            f"multiples of the {blocks} blocks of a step, got {tuple(depths)}"
        )
    return (0, *(d // blocks for d in depths), stage.steps)


def _placed(leaf: Any, mesh: Mesh, axis: str) -> Any:
    """The array on the mesh, whole along `axis` and split along others as it was."""
    sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
    spec = P()
    if isinstance(sharding, NamedSharding) and sharding.mesh.shape == mesh.shape:
        spec = P(*(_without(entry, axis) for entry in sharding.spec))
    return jax.device_put(leaf, NamedSharding(mesh, spec))


def _without(entry: Any, axis: str) -> Any:
    kept = tuple(
        a for a in (entry if isinstance(entry, tuple) else (entry,)) if a not in (axis, None)
    )
    return kept or None


def _call(step: Step, state: PyTree, criterion: Criterion, static: tuple[Any, ...]) -> Halted:
    leaves, structure = jax.tree.flatten((step, state, criterion))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return _run(step, state, criterion, *static, automatic=False)
    if all(leaf.is_fully_replicated for leaf in jax.tree.leaves((step, criterion))):
        return _run(step, state, criterion, *static, automatic=False)
    shapes = (
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding, weak_type=a.weak_type)
        for a in leaves
    )
    return _read(structure, tuple(shapes), static)(step, state, criterion)


@functools.lru_cache(maxsize=64)
def _read(structure: Any, leaves: tuple[Any, ...], static: tuple[Any, ...]) -> jax.stages.Compiled:
    """The compiled program for weights that are split, which was read."""
    step, state, criterion = jax.tree.unflatten(structure, leaves)
    run = functools.partial(_run, automatic=True)
    return compile_sharded(lambda *args: run(*args, *static), step, state, criterion)


@watched_jit(
    "run_sharded",
    static_argnames=("depth", "mesh", "axis", "segments", "tile", "keep_state", "automatic"),
)
def _run(
    step: Step,
    state: PyTree,
    criterion: Criterion,
    depth: Any,
    mesh: Mesh,
    axis: str,
    segments: tuple[int, ...],
    tile: Any,
    keep_state: bool,
    automatic: bool,
) -> Halted:
    stages = stages_of(step, depth)
    batch, local = batch_size(state), batch_size(state) // mesh.shape[axis]
    _, output = walk(stages, state)
    memory = first_memory(criterion, batch, output, last_exit(stages) + 1)
    spread = functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(), P(axis), P(axis), P(axis)),
        out_specs=P(axis),
        axis_names={axis} if automatic else set(mesh.axis_names),
    )
    known = lambda criterion, memory: dataclasses.replace(
        criterion,
        init_score=Partial(_given, memory.score),
        init_decide=Partial(_given, memory.decide),
    )
    row = jnp.arange(batch, dtype=jnp.int32)
    if len(segments) == 2:

        def alone(
            step: Step, criterion: Criterion, memory: Memory, state: PyTree, row: Array
        ) -> Halted:
            halted = run_until(
                step, state, depth, known(criterion, memory), "compacted", tile, keep_state
            )
            return halted._replace(rows_executed=halted.rows_executed[None])

        return spread(alone)(step, criterion, memory, state, row)

    tiling = tile[0] if isinstance(tile, tuple) else default_tiling(state, local, tile, step)
    _, read = walk(stages, jax.tree.map(lambda a: a[:local], state))
    (plan,), places = plan_for(local, read, [tiling])

    def together(
        step: Step, criterion: Criterion, memory: Memory, state: PyTree, row: Array
    ) -> tuple[PyTree, Array]:
        job = Job(known(criterion, memory), last_exit(stages), batch)
        rows = begin(state, read, memory, local, last_exit(stages) + 1)._replace(row=row)
        carry, parts = all_live(rows, plan.few, places), []
        for start, stop in itertools.pairwise(segments):
            if start:
                carry = _rebalance(carry, axis, local, plan.few)
            room = empty_rows(state, plan.few - 1 + local) if keep_state else None
            before, carry = carry.alive, with_room(carry, room)
            part = Stage(_later(step, start), stop - start, start, start * step.blocks)
            carry = run_loop(part, job, carry, None, plan)
            parts.append(_exited(carry, before, local, plan.few, batch))
        return jax.tree.map(lambda *a: jnp.concatenate(a), *parts), total(carry.executed)[None]

    exited, executed = spread(together)(step, criterion, memory, state, row)
    row, nan_exits, exit, buffers = exited
    at = jnp.zeros(batch, jnp.int32)
    at = at.at[row].set(jnp.arange(row.shape[0], dtype=jnp.int32), mode="drop")
    home = NamedSharding(mesh, P(axis))
    back = lambda tree: jax.tree.map(lambda a: lax.with_sharding_constraint(a[at], home), tree)
    nan_exits, exit, (state, output, memory) = back((nan_exits, exit, buffers))
    depth = exit_depth(stages, exit)
    return Halted(output, exit, depth, state, memory, nan_exits, executed)


def _given(memory: PyTree, batch: int, output: PyTree = None) -> PyTree:
    return memory


def _exited(carry: Carry, before: Array, local: int, few: int, batch: int) -> PyTree:
    """The rows that exited since `before` rows were live; the index of any other position is B."""
    position = jnp.arange(local, dtype=jnp.int32)
    row, nan_exits, exit = (a[:local] for a in (carry.row, carry.nan_exits, carry.exit))
    row = jnp.where((position >= carry.alive) & (position < before), row, batch)
    return row, nan_exits, exit, by_position(carry, few)


def _later(step: Step, first: int) -> Step:
    """The step with its index shifted by `first`."""
    return Step(
        lambda i: step.select(i + first),
        lambda w, i, state: step.apply(w, i + first, state),
        step.blocks,
    )


def _rebalance(carry: Carry, axis: str, local: int, few: int) -> Carry:
    """Redistributes survivors evenly over the devices."""
    devices, me = lax.axis_size(axis), lax.axis_index(axis)
    each = -(-local // devices)  # rows from one device to another, at most
    counts = lax.all_gather(carry.alive, axis)
    before = jnp.cumsum(counts) - counts
    offsets = jnp.arange(each, dtype=jnp.int32) * devices
    # the first row that is sent to device `to`, if `start` rows are on the devices before
    first = lambda to, start: (to - start) % devices
    send = first(jnp.arange(devices, dtype=jnp.int32), before[me])[:, None] + offsets[None]
    send = jnp.minimum(send, local - 1)
    come = first(me, before)[:, None] + offsets[None] < counts[:, None]
    order = order_by_group(jnp.where(come.reshape(-1), 0, 1))[:local]

    def exchange(a: Array, position: Array) -> Array:
        sent = a.at[position].get(mode="promise_in_bounds")
        got = lax.all_to_all(sent, axis, 0, 0)
        return a.at[:local].set(got.reshape(devices * each, *a.shape[1:])[order])

    live = carry.live
    place = live.source[send + few - 1]
    state, memory = jax.tree.map(lambda a: exchange(a, place), (live.state, live.memory))
    row, nan_exits = (exchange(a, send) for a in (carry.row, carry.nan_exits))
    source = jnp.arange(1 - few, carry.row.shape[0], dtype=jnp.int32)
    live = live._replace(state=state, memory=memory, source=source)
    count = come.sum(dtype=jnp.int32)
    return carry._replace(live=live, row=row, nan_exits=nan_exits, alive=count)
