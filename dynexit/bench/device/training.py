"""Training steps: seconds and memory of `jax.value_and_grad` with one exit and with all exits."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.bench.device import vit
from dynexit.bench.device.state import Record, State
from dynexit.bench.device.timing import Compiled, compiled, measure, prescribed
from dynexit.bench.device.vit import Shape, tolerance
from dynexit.core.shapes import Array, PyTree
from dynexit.criteria.confidence import at_depth
from dynexit.engine.gradients.bounded import run_bounded
from dynexit.engine.run import run_all, run_full

SECTION = "training"
MEAN_DEPTH = 0.5  # of the runs that exit
Loss: TypeAlias = Callable[..., Array]  # (params, state, labels, depths) -> scalar


def run_training(suite: State) -> None:
    """Adds a record for each training step; the losses are compared with those of `dx.run_all`."""
    shape, batch = suite.shape, suite.train_batch
    _, params, state = vit.problem(shape, batch)
    depths = prescribed(shape.depth, MEAN_DEPTH, batch)
    labels = jnp.arange(batch, dtype=jnp.int32) % shape.classes
    arguments = params, state, labels, jnp.asarray(depths)
    programs: dict[str, Compiled] = {}
    for name, (loss, _, _) in losses(shape).items():
        build = lambda loss=loss: compiled(jax.value_and_grad(loss), *arguments)
        if (program := suite.attempt(SECTION, name, build)) is not None:
            programs[name] = program
    if not programs:
        return
    suite.log(f"training: timing {len(programs)} programs")
    checked = _check(suite, programs, arguments)
    calls = {name: lambda f=p.call: f(*arguments) for name, p in programs.items()}
    timing = measure(calls, suite.rounds, suite.limit)
    for name, t in timing.items():
        _, exits, dynamic = losses(shape)[name]
        record = {"section": SECTION, "program": name, "batch": batch, "exits": exits}
        record |= {"dtype": shape.dtype} | t.record() | checked[name] | programs[name].memory
        record |= {"mean_depth": float(depths.mean()) / shape.depth if dynamic else 1.0}
        suite.add(record | {"compile_seconds": programs[name].seconds})


def losses(shape: Shape) -> dict[str, tuple[Loss, int, bool]]:
    """The loss of each program, its number of exits, and whether its rows exit early.

    With one exit a step is the whole network. The loss is the mean cross-entropy over all exits
    (`run_all`) or over the exit that each row takes (`run_bounded`).
    """
    depth = shape.depth
    stacked = vit.stacked

    def full(p: PyTree, h: Array, labels: Array, depths: Array) -> Array:
        return _cross_entropy(run_full(stacked(shape, p), h, depth)[1], labels)

    def all_exits(blocks: int) -> Loss:
        return lambda p, h, labels, depths: _cross_entropy(
            run_all(stacked(shape, p, blocks), h, depth), labels
        )

    def bounded(blocks: int, executor: Any) -> Loss:
        def loss(p: PyTree, h: Array, labels: Array, depths: Array) -> Array:
            rule = at_depth(depths)
            halted = run_bounded(stacked(shape, p, blocks), h, depth, rule, executor)
            return _cross_entropy(halted.output, labels)

        return loss

    return {
        "run_full": (full, 1, False),
        "run_all, 1 exit": (all_exits(depth), 1, False),
        f"run_all, {depth} exits": (all_exits(1), depth, False),
        "run_bounded masked, 1 exit": (bounded(depth, "masked"), 1, False),
        f"run_bounded masked, {depth} exits": (bounded(1, "masked"), depth, True),
        f"run_bounded compacted, {depth} exits": (bounded(1, "compacted"), depth, True),
    }


def _cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over all leading axes of logits `[..., B, classes]`."""
    logs = jax.nn.log_softmax(logits)
    chosen = jnp.broadcast_to(labels, logs.shape[:-1])[..., None]
    return -jnp.take_along_axis(logs, chosen, axis=-1).mean()


def _check(
    suite: State, programs: dict[str, Compiled], arguments: tuple[Any, ...]
) -> dict[str, Record]:
    """Compares the loss and the gradient norm of each program with references.

    Programs with equal results are compared: those with one exit with `run_full`, and those that
    exit early with each other and with the outputs of `dx.run_all`. NaN is a disagreement.
    """
    shape = suite.shape
    params, state, labels, depths = arguments
    every = jax.jit(lambda p, h: run_all(vit.stacked(shape, p), h, shape.depth))
    outputs = np.asarray(every(params, state), np.float32)
    taken = jnp.asarray(vit.at_exits(outputs, np.asarray(depths)))
    norm = jax.jit(lambda g: jnp.sqrt(sum(jnp.sum(a.astype(jnp.float32) ** 2) for a in g.values())))
    of_logits = {0: taken, 1: jnp.asarray(outputs[-1]), shape.depth: jnp.asarray(outputs)}
    known = {kind: _cross_entropy(logits, labels) for kind, logits in of_logits.items()}
    found: dict[str, Record] = {}
    norms: dict[int, float] = {}
    for name, program in programs.items():
        _, exits, dynamic = losses(shape)[name]
        kind = 0 if dynamic else exits
        loss, gradient = program.call(*arguments)
        size = float(norm(gradient))
        expected = norms.setdefault(kind, size)
        of_loss = abs(float(loss) - float(known[kind])) / abs(float(known[kind]))
        error = float(np.max([of_loss, abs(size - expected) / expected]))  # NaN if either is
        agrees = bool(error <= tolerance(shape.dtype))
        if not agrees:
            text = f"loss or gradient differs by {error:.3g}, relative"
            suite.fail(SECTION, name, AssertionError(text))
        found[name] = {"loss": float(loss), "gradient_norm": size, "agrees": agrees}
    return found
