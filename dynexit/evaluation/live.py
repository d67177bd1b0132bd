"""The dynamic program on all rows of a split, on the devices of all processes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dynexit.core.shapes import PyTree, Rows
from dynexit.core.types import Experiment
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.tuning.tune import Tuned
from dynexit.evaluation import latency
from dynexit.evaluation.batches import batches, prepared
from dynexit.evaluation.devices import Devices, kept_on
from dynexit.evaluation.latency import Ran
from dynexit.evaluation.timings import executor_of


def on_devices(
    devices: Devices, experiment: Experiment, params: PyTree, tuned: Tuned | None
) -> Callable[[PyTree, PyTree], Ran]:
    """The dynamic program on a batch for every device; its `rows_executed` is `[D]`.

    Args:
      devices: of a mesh.
      experiment: model and method.
      params: placed on the devices.
      tuned: executor and tiles; None for the engine's defaults.
    """
    model, method = experiment.model, experiment.method
    chosen = executor_of(tuned)

    def dynamic(shared: tuple[PyTree, PyTree], inputs: Rows) -> Ran:
        ran = latency.dynamic_depth(model, method, *shared, inputs, *chosen)
        return ran._replace(rows_executed=ran.rows_executed[None])

    run = devices.compile(dynamic)
    return lambda operating_point, inputs: run((params, devices.place(operating_point)), inputs)


def run_live(
    dynamic: Callable[[PyTree, PyTree], Ran],
    operating_point: PyTree,
    examples: dict[str, Any],
    size: int,
    experiment: Experiment,
    devices: Devices,
) -> tuple[Ran, float]:
    """Runs all rows, in batches on every device.

    Args:
      dynamic: the dynamic program, of an operating point and prepared inputs.
      operating_point: the operating point.
      examples: of the split.
      size: rows of a batch on one device.
      experiment: prepares the inputs.
      devices: of all processes, which all call it.

    Returns:
      The results of all rows, and rows x steps executed, padding rows included.
    """
    prepare = devices.compile(lambda _, inputs: prepared(experiment, inputs), whole=False)
    parts, executed = [], 0.0
    whole = size * devices.count
    for batch in batches(examples, whole, devices.own(whole)):
        ran = dynamic(operating_point, prepare((), batch.inputs))
        for rows, kept in zip(
            np.atleast_1d(ran.rows_executed), kept_on(devices, batch.kept, size), strict=True
        ):
            executed += float(rows) * int(kept) / size
        each = ran._replace(rows_executed=np.zeros(batch.kept, np.int32))
        parts.append(jax.tree.map(lambda a, n=batch.kept: np.asarray(a)[:n], each))
    return jax.tree.map(lambda *a: np.concatenate(a), *parts), executed


def tuned_by_first(
    tune: Callable[[], Tuned], devices: Devices, log: Callable[[str], None]
) -> Tuned:
    """What process 0 has tuned, on all processes: all must compile one program."""

    def written() -> list[Any]:
        t = tune()
        tiles = [([*map(int, tile.sizes)], [*map(float, tile.costs)]) for tile in t.tile]
        costs = [[(int(size), float(c)) for size, c in each.items()] for each in t.costs]
        seconds = {name: float(each) for name, each in t.seconds.items()}
        return [t.executor, tiles, seconds, costs, t.origin]

    executor, tiles, seconds, costs, origin = devices.from_first(written, "tunes the tiles", log)
    tilings = tuple(Tiling(tuple(sizes), tuple(each)) for sizes, each in tiles)
    return Tuned(executor, tilings, seconds, tuple(dict(each) for each in costs), origin)
