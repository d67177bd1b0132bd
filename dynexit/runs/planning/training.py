"""What training needs on a mesh: memory, FLOPs, communication and checkpoints.

Nothing is executed. The training step is compiled for virtual CPU devices. A mesh of more devices
than `mesh.MOST` is compiled with fewer of them along "data" (and, if that is not enough, along
"fsdp"), at equal rows on each device; what depends on the compiled program is then extrapolated.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from dynexit.core.settings import Mesh
from dynexit.runs.planning.lines import Line
from dynexit.runs.planning.mesh import compiled_sizes, sizes_of


class Storage(NamedTuple):
    """What writes checkpoints.

    Attributes:
      bandwidth: bytes per second of one host.
      devices: on each host.
    """

    bandwidth: float = 1e9
    devices: int = 8


def training_plan(experiment: Any, settings: Any, storage: Storage) -> list[Line]:
    """Memory, FLOPs, communication and checkpoints of training.

    Args:
      experiment: built from the settings.
      settings: a `dx.Settings`; its mesh is planned.
      storage: what writes checkpoints.

    Raises:
      ValueError: the mesh does not fit the batch or the parameters, or this process has fewer
        devices than are compiled for.
    """
    import jax
    from jax.sharding import AbstractMesh

    from dynexit.training.parallel.mesh import AXES, check_batch_size, make_mesh
    from dynexit.training.state import state_shapes, state_shardings

    sizes, training = sizes_of(settings.mesh), settings.training
    whole = AbstractMesh(sizes, AXES)
    check_batch_size(training.batch_size, whole)
    shapes = state_shapes(experiment, training)
    where = state_shardings(experiment, training, whole)
    split = "exact, from the shardings"
    moments = _held(shapes.opt_state, where.opt_state)
    lines = [
        Line("parameters", _held(shapes.params, where.params), "bytes", split),
        Line("optimizer state", moments, "bytes", split),
    ]

    small = compiled_sizes(sizes)
    rows = training.batch_size // (sizes[0] * sizes[1])
    training = dataclasses.replace(training, batch_size=rows * small[0] * small[1])
    count = math.prod(small)
    mesh = make_mesh(Mesh(*small), jax.devices()[:count])
    program = _step_program(experiment, training, mesh)
    measured = f"compiled for {' x '.join(map(str, small))} virtual CPU devices"
    if small != sizes:
        measured = f"extrapolated: {measured}, at equal rows on each"
    lines += _program_lines(program, count, measured)
    flops = _flops(experiment, training) / count
    lines += [
        Line("FLOPs of an update", flops, "FLOPs", "lowered loss and gradient, shared evenly"),
        Line("rows of an update", rows, "rows", "exact"),
    ]
    return lines + _checkpoint(shapes, sizes, storage)


def _held(shapes: Any, where: Any) -> int:
    """Bytes on one device."""
    import jax

    part = lambda a, s: math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize
    return sum(jax.tree.leaves(jax.tree.map(part, shapes, where)))


def _step_program(experiment: Any, training: Any, mesh: Any) -> Any:
    """The compiled training step, from shapes."""
    import jax

    from dynexit.training.parallel.mesh import by_rows, replicated
    from dynexit.training.state import state_shapes, state_shardings
    from dynexit.training.step import make_train_step

    shapes = state_shapes(experiment, training)
    where = state_shardings(experiment, training, mesh)
    place = lambda tree, s: jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree
    )
    state = shapes._replace(
        step=place(shapes.step, where.step),
        key=place(shapes.key, where.key),
        params=jax.tree.map(place, shapes.params, where.params),
        opt_state=jax.tree.map(place, shapes.opt_state, where.opt_state),
        carry=jax.tree.map(place, shapes.carry, where.carry),
    )
    batch = place(batch_shapes(experiment, training.batch_size), by_rows(mesh))
    batch["step"] = place(shapes.step, replicated(mesh))
    step: Any = make_train_step(experiment, training, mesh)
    return step.lower(state, batch).compile()


def _program_lines(program: Any, count: int, source: str) -> list[Line]:
    """Memory and communication of a compiled program."""
    from dynexit.engine.collectives import collectives

    memory = program.memory_analysis()
    lines = [
        Line("batch and state", memory.argument_size_in_bytes, "bytes", source),
        Line("activations and gradients", memory.temp_size_in_bytes, "bytes", source),
    ]
    sent: dict[str, list[float]] = {}
    for each in collectives(program.as_text() or ""):
        if each.groups is None or len(each.groups[0]) > 1:
            number, bytes = sent.setdefault(each.kind, [0, 0.0])
            sent[each.kind] = [number + each.times, bytes + each.times * each.sent(count)]
    lines.append(Line("sent in an update", sum(b for _, b in sent.values()), "bytes", source))
    return lines + [
        Line(f"  by {number:g} x {kind}", bytes, "bytes", source)
        for kind, (number, bytes) in sorted(sent.items())
    ]


def _flops(experiment: Any, training: Any) -> float:
    """FLOPs of loss and gradient for the whole batch."""
    import jax
    import jax.numpy as jnp

    from dynexit.core.cost import flops_of
    from dynexit.training.state import state_shapes
    from dynexit.training.step import make_gradient

    gradient, shapes = make_gradient(experiment, training), state_shapes(experiment, training)
    batch = batch_shapes(experiment, training.batch_size)

    def update(params: Any, carry: Any, inputs: Any, labels: Any) -> Any:
        key = jax.random.key(0)
        if experiment.augment is not None:
            inputs = experiment.augment(key, inputs)
        if experiment.prepare is not None:
            inputs = experiment.prepare(inputs)
        return gradient(params, carry, inputs, labels, key, jnp.float32(0.5))

    return flops_of(update, shapes.params, shapes.carry, batch["inputs"], batch["labels"])


def _checkpoint(shapes: Any, sizes: tuple[int, int, int], storage: Storage) -> list[Line]:
    """Size and time: the first copy of every slice is written, by the hosts that hold it."""
    import jax

    leaves = jax.tree.leaves((shapes.params, shapes.opt_state, shapes.carry))
    size = sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves)
    hosts = -(-sizes[1] * sizes[2] // storage.devices)
    seconds = size / hosts / storage.bandwidth
    source = f"{hosts} hosts of {storage.devices} devices at {storage.bandwidth / 1e9:g} GB/s each"
    return [
        Line("a checkpoint, of all devices", size, "bytes", "exact"),
        Line("time to write a checkpoint", seconds, "s", f"arithmetic: {source}"),
    ]


def batch_shapes(experiment: Any, rows: int) -> dict[str, Any]:
    """Shapes of what a step reads of a batch."""
    import jax

    drawn = experiment.train.batch(0, 0, 1)

    def shape(a: Any) -> Any:
        a = np.asarray(a)
        return jax.ShapeDtypeStruct((rows, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype))

    labels = np.asarray(drawn["labels"])
    labels = labels.astype(np.int32) if labels.dtype.kind in "iu" else labels
    return {"inputs": jax.tree.map(shape, drawn["inputs"]), "labels": shape(labels)}
