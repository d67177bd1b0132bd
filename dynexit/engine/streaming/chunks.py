"""Streaming a queue that does not fit in memory, chunk by chunk from the host."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import batch_size, describe, shapes
from dynexit.core.shapes import PyTree
from dynexit.core.stages import depth_of
from dynexit.core.types import Criterion, Halted, Step
from dynexit.engine.streaming.stream import checked_slots, streamed


def stream_chunks(
    step: Step,
    chunks: Iterable[PyTree],
    depth: int | None = None,
    criterion: Criterion | None = None,
    slots: int | None = None,
    keep_state: bool = True,
) -> Iterator[Halted]:
    """`run_stream` for every chunk of a queue, with the next chunk transferred in advance.

    Chunk k + 1 is drawn, transferred and enqueued before the results of chunk k are awaited. At
    most two chunks and their results are on the device. The device is idle only if drawing a chunk
    and using a result takes longer than running a chunk.

    Args:
      step, depth, criterion, slots, keep_state: as in `run_stream`. The memory of a criterion
        (`at_depth`) is initialised for each chunk, with the number of rows of the first chunk.
      chunks: host arrays, leaves `[m, ...]`, where m is at most that of the first chunk. A shorter
        chunk does not recompile, and its missing rows do not run. A chunk is copied when it is
        drawn, so its arrays may be reused for the next chunk.

    Returns:
      An iterator of `Halted` on the host (numpy), one per chunk in their order, leaves `[m, ...]`.

    Raises:
      TypeError, ValueError: as `run_stream`, immediately; when a chunk is drawn, it is empty, has
        more rows than the first chunk or differs from it in shape, dtype or structure.

    Example:
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h * p, lambda p, h: h, jnp.array([2.0, 3.0, 4.0]))
      >>> big = dx.criteria.gate_above(8.0, read=lambda output: output)
      >>> chunks = iter([np.float32([1, 5]), np.float32([2, 0]), np.float32([3])])
      >>> results = dx.stream_chunks(step, chunks, depth=3, criterion=big)
      >>> [halted.exit_depth.tolist() for halted in results]
      [[3, 1], [2, 3], [2]]
    """
    slots = checked_slots(step, depth, criterion, slots)
    if not isinstance(chunks, Iterable) or isinstance(chunks, (dict, np.ndarray, jax.Array)):
        raise TypeError(
            "`chunks` must be an iterable of chunks, each with leaves [m, ...], got "
            f"{type(chunks).__name__}"
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
            f"`{name}` has the structure {jax.tree.structure(chunk)}, the first chunk "
            f"{jax.tree.structure(first)}"
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
                f"`{name}`{jax.tree_util.keystr(path)} is {describe(b)}, in the first chunk it is "
                f"{describe(a)}; a chunk may have fewer rows than the first one, but must have the "
                "same structure, shapes and dtypes otherwise"
            )


def _padded(chunk: PyTree, rows: int) -> PyTree:
    """A copy with `rows` rows, the last one repeated."""
    return jax.tree.map(
        lambda a: np.asarray(a)[np.minimum(np.arange(rows), np.shape(a)[0] - 1)], chunk
    )


def _fetched(halted: Halted, rows: int) -> Halted:
    """The result on the host, without padding rows."""
    halted = jax.device_get(halted)
    cut = jax.tree.map(lambda a: a[:rows], halted._replace(rows_executed=()))
    return cut._replace(rows_executed=halted.rows_executed)
