"""Streaming a queue longer than memory: chunk by chunk from the host, one running while the next is
drawn and transferred.
"""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import batch_size, depth_of, describe, shapes
from dynexit.core.types import Criterion, Halted, PyTree, Step
from dynexit.engine.streaming.stream import checked_slots, streamed


def stream_chunks(
    step: Step,
    chunks: Iterable[PyTree],
    depth: int | None = None,
    criterion: Criterion | None = None,
    slots: int | None = None,
    keep_state: bool = True,
) -> Iterator[Halted]:
    """`run_stream` for every chunk of a queue, one chunk ahead; two chunks and their results are on
    the device at most.

    Chunk k + 1 is drawn, transferred and queued behind chunk k before the results of chunk k are
    waited for. So the device is idle only where drawing a chunk and using a result takes longer
    than running one.

    Args:
      step, depth, criterion, slots, keep_state: as in `run_stream`. A criterion that remembers
        something of every row (`at_depth`) begins each chunk anew, with as many rows as the first
        chunk has.
      chunks: host arrays, leaves `[m, ...]`; m is the same for all, or less than in the first:
        nothing is compiled anew and no missing row is run. A chunk is copied when it is drawn, so
        its arrays may be used again for the next.

    Returns:
      An iterator of `Halted` on the host (numpy), one a chunk and in their order, leaves `[m,
      ...]`.

    Raises:
      TypeError, ValueError: as `run_stream`, at once; and when it is drawn, a chunk that is empty,
        longer than the first or otherwise of another shape, dtype or structure.

    Example:
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h * p, lambda p, h: h, jnp.array([2.0, 3.0, 4.0]))
      >>> big = dx.criteria.gate_above(8.0, read=lambda output: output)
      >>> chunks = iter([np.float32([1, 5]), np.float32([2, 0]), np.float32([3])])
      >>> [halted.exit_depth.tolist() for halted in dx.stream_chunks(step, chunks, depth=3, criterion=big)]
      [[3, 1], [2, 3], [2]]
    """
    slots = checked_slots(step, depth, criterion, slots)
    if not isinstance(chunks, Iterable) or isinstance(chunks, (dict, np.ndarray, jax.Array)):
        raise TypeError(
            f"`chunks` must be an iterable of chunks, each with leaves [m, ...], got {type(chunks).__name__}"
        )
    return _results(step, chunks, depth_of(step, depth), criterion, slots, keep_state)


def _results(
    step: Step,
    chunks: Iterable[PyTree],
    depth: int,
    criterion: Criterion | None,
    slots: int | None,
    keep_state: bool,
) -> Iterator[Halted]:
    running, first = None, None
    for k, chunk in enumerate(chunks):
        rows = batch_size(chunk, f"chunks[{k}]")
        first = shapes(chunk) if first is None else first
        _check_like(first, chunk, f"chunks[{k}]")
        queue = jax.device_put(_padded(chunk, batch_size(first)))
        ahead = (
            streamed(
                step, queue, jax.device_put(np.int32(rows)), depth, criterion, slots, keep_state
            ),
            rows,
        )
        if running is not None:
            yield _fetched(*running)
        running = ahead
    if running is not None:
        yield _fetched(*running)


def _check_like(first: PyTree, chunk: PyTree, name: str) -> None:
    if jax.tree.structure(chunk) != jax.tree.structure(first):
        raise ValueError(
            f"`{name}` has the structure {jax.tree.structure(chunk)}, the first chunk {jax.tree.structure(first)}"
        )
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(first)[0], jax.tree.leaves(chunk), strict=True
    ):
        if (
            jnp.shape(b)[1:] != a.shape[1:]
            or jnp.result_type(b) != a.dtype
            or jnp.shape(b)[0] > a.shape[0]
        ):
            raise ValueError(
                f"`{name}`{jax.tree_util.keystr(path)} is {describe(b)}, in the first chunk it is {describe(a)}; a chunk may have "
                "fewer rows than the first and differ in nothing else"
            )


def _padded(chunk: PyTree, rows: int) -> PyTree:
    """A copy with `rows` rows, the last one repeated."""
    return jax.tree.map(
        lambda a: np.asarray(a)[np.minimum(np.arange(rows), np.shape(a)[0] - 1)], chunk
    )


def _fetched(halted: Halted, rows: int) -> Halted:
    """Waited for, on the host, and without the padding."""
    halted = jax.device_get(halted)
    cut = jax.tree.map(lambda a: a[:rows], halted._replace(rows_executed=()))
    return cut._replace(rows_executed=halted.rows_executed)
