"""`export`: a function with exits as one file of StableHLO, which runs wherever jax does and needs
no dynexit.

The engine is traced with a symbolic batch size: its plans of tiles are then looked up by the number
of live rows alone (`Tiling.counts_for`), so one file serves every batch, on every platform named,
and each row still leaves at its own depth.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from dynexit.core.checks import batch_size, positive_integer
from dynexit.core.types import PyTree

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # those that jax itself knows


class Artifact(NamedTuple):
    """What `export` wrote.

    Attributes:
      path: the file.
      bytes: its size.
      platforms: where it runs.
      batch: the number of rows it takes, or "any".
      inputs, arguments: what `call` takes, as `jax.ShapeDtypeStruct` in plain dicts, lists and
        tuples; `b` is any number of rows.
      outputs: what `call` gives, likewise.
    """

    path: Path
    bytes: int
    platforms: tuple[str, ...]
    batch: int | Literal["any"]
    inputs: PyTree
    arguments: tuple[PyTree, ...]
    outputs: PyTree


def export(
    function: Callable[..., PyTree],
    example: PyTree,
    path: str | os.PathLike[str],
    arguments: Sequence[PyTree] = (),
    batch: int | Literal["any"] = "any",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Artifact:
    """Writes `function`, compiled to StableHLO, as one file that runs without dynexit and without
    the function's source.

    The reader needs jax and flatbuffers, and passes plain dicts, lists and tuples where `function`
    takes named tuples:

        run = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call) halted =
        run(inputs, *arguments)  # a dict with the fields of `Halted`, where `function` returns one

    Rows leave at their own depth there as they do here. XLA compiles the file once for each batch
    size that it meets.

    Args:
      function: `function(inputs, *arguments) -> tree of arrays`, such as one that calls
        `run_until`; it is traced and not run. Arrays that it closes over (weights) become constants
        in the file.
      example: inputs, leaves `[B, ...]`, for their shapes and types; arrays or
        `jax.ShapeDtypeStruct`.
      path: the file to write; one that is there is replaced, in one step and only by a whole one.
      arguments: examples of what else `function` takes, of any shape: thresholds, weights. They
        stay arguments.
      batch: "any", or the number of rows for a function that cannot be traced without it
        (`criteria.at_depth` with a depth a row). For "any", `tile=None` in `run_until` compiles
        tiles for large batches too; a smaller `tile` compiles sooner.
      platforms: any of "cpu", "cuda", "rocm" and "tpu"; none of them need be present.

    Returns:
      `Artifact`.

    Raises:
      TypeError: `function` is not callable or returns something else than arrays in dicts, lists
        and (named) tuples, `example` or `arguments` holds something else, `path` is no path.
      ValueError: `example` has no rows, `batch` or `platforms` is not as above, `function` needs a
        fixed number of rows, calls back into Python or is sharded over several devices.
      OSError: `path` cannot be written.

    Example:
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.ones(3))
      >>> def run(x, limit):
      ...     leave = dx.criteria.gate_above(limit, read=lambda output: output)
      ...     return dx.run_until(step, x, depth=3, criterion=leave)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     artifact = dx.export(run, jnp.zeros(1), f"{folder}/network.stablehlo", arguments=(2.5,))
      ...     content = bytearray(artifact.path.read_bytes())
      >>> jax.export.deserialize(content).call(jnp.array([0.0, 1.0, 2.0]), 2.5)["exit_depth"]
      Array([3, 2, 1], dtype=int32)
    """
    if not callable(function):
        raise TypeError(f"`function` must be callable, got {type(function).__name__}")
    platforms = _checked(platforms)
    if not isinstance(arguments, (tuple, list)):
        raise TypeError(
            f"`arguments` must be a tuple or a list, one entry an argument, got {type(arguments).__name__}"
        )
    taken = (
        _shapes(example, "example"),
        *(_shapes(a, f"arguments[{k}]") for k, a in enumerate(arguments)),
    )
    rows = batch_size(taken[0], "example")
    if batch != "any":
        if isinstance(batch, str):
            raise ValueError(f"`batch` must be 'any' or a number of rows, got {batch!r}")
        rows = positive_integer(batch, "batch")
    leaves, structure = jax.tree.flatten(taken)
    numbered = structure.unflatten(range(len(leaves)))
    order = (
        _plain(numbered[0], "example"),
        *(_plain(n, f"arguments[{k}]") for k, n in enumerate(numbered[1:])),
    )

    def plain(*passed: PyTree) -> PyTree:
        found = dict(zip(jax.tree.leaves(order), jax.tree.leaves(passed), strict=True))
        return _plain(
            function(*structure.unflatten([found[k] for k in range(len(leaves))])), "function(...)"
        )

    plain.__name__ = getattr(
        function, "__name__", type(function).__name__
    )  # jax's own messages give it

    def wanted(rows: Any) -> tuple[PyTree, ...]:
        """What `plain` takes for so many rows."""
        resized = lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype)
        sizes = jax.tree.leaves((jax.tree.map(resized, taken[0]), *taken[1:]))
        return jax.tree.map(lambda k: sizes[k], order)

    with _draft(_checked_path(path)) as (file, place):
        program = jax.jit(plain)
        symbolic = batch == "any"
        specs = wanted(jax.export.symbolic_shape("b")[0] if symbolic else rows)
        outputs = _outputs(program, specs, wanted(rows), wanted(rows + symbolic))
        if program.trace(*specs).jaxpr.effects:
            raise ValueError(
                "`function` calls back into Python (jax.debug, io_callback), which a file cannot hold"
            )
        exported = jax.export.export(program, platforms=platforms)(*specs)
        if exported.nr_devices != 1:
            raise ValueError(
                f"`function` is spread over {exported.nr_devices} devices by a sharding inside it; a file runs on one device"
            )
        content = exported.serialize()
        file.write(content)
    return Artifact(place, len(content), platforms, batch, specs[0], specs[1:], outputs)


def _outputs(
    program: Any, specs: tuple[PyTree, ...], fixed: tuple[PyTree, ...], other: tuple[PyTree, ...]
) -> PyTree:
    """Shapes of the outputs; where the program can be traced with `fixed` sizes alone, says so.

    Tracing with `other` sizes, too, finds numbers of rows that are written into the program, which
    jax meets on loading only.
    """
    try:
        outputs = program.eval_shape(*specs)
        program.eval_shape(*other)
    except Exception as error:
        program.eval_shape(
            *fixed
        )  # a fault that has nothing to do with the number of rows is told as it is
        raise ValueError(
            f"`function` cannot be traced for any number of rows ({type(error).__name__}: {str(error).strip().splitlines()[0]}); "
            "make it so, or give `batch` as a number"
        ) from error
    return outputs


def _checked(platforms: Any) -> tuple[str, ...]:
    """`platforms` as a tuple."""
    if isinstance(platforms, str) or not isinstance(platforms, Sequence):
        raise TypeError(
            f"`platforms` must be a sequence of names such as ('cpu', 'tpu'), got {platforms!r}"
        )
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
        raise ValueError(
            f"`platforms` must be different ones of {', '.join(map(repr, PLATFORMS))}, got {tuple(platforms)!r}"
        )
    return tuple(platforms)


def _shapes(tree: PyTree, name: str) -> PyTree:
    """`jax.ShapeDtypeStruct` for every leaf of an argument.

    Raises:
      TypeError: a leaf is not an array.
    """

    def shape(path, leaf):
        try:
            return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
        except TypeError as error:
            raise TypeError(
                f"`{name}{jax.tree_util.keystr(path)}` must be an array, got {type(leaf).__name__}"
            ) from error

    return jax.tree_util.tree_map_with_path(shape, tree)


def _plain(tree: PyTree, name: str) -> PyTree:
    """The same leaves in dicts, lists and tuples, which can be read without dynexit; named tuples
    become dicts.

    Raises:
      TypeError: a node of another type, or a dict with keys that are not strings; the place is
        named.
    """
    if tree is None or jax.tree_util.all_leaves([tree]):
        return tree
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {
            field: _plain(getattr(tree, field), f"{name}.{field}")
            for field in getattr(tree, "_fields", ())
        }
    if isinstance(tree, (tuple, list)):
        return (list if isinstance(tree, list) else tuple)(
            _plain(value, f"{name}[{k}]") for k, value in enumerate(tree)
        )
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str) for key in tree):
            raise TypeError(f"`{name}` is a dict whose keys are not all strings: {list(tree)!r}")
        return {key: _plain(value, f"{name}[{key!r}]") for key, value in tree.items()}
    raise TypeError(
        f"`{name}` is a {type(tree).__name__}, which a reader without its module cannot make; arrays go in dicts, lists and tuples "
        "(pass a criterion's thresholds, and make the criterion inside the function)"
    )


def _checked_path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be a string or a path, got {type(path).__name__}")
    return Path(path)


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file beside `path`, opened before the long work, that takes its place when that ends well
    and is removed otherwise.
    """
    try:
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(
            error.errno, f"`path` cannot be written ({error.strerror})", str(path)
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, path
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
