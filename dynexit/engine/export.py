"""`export`: a function with exits as one file of StableHLO, which runs without dynexit.

The engine is traced with a symbolic batch size. Its plans of tiles are then looked up by the number
of live rows only (`Tiling.counts_for`). So one file serves every batch size on all given platforms,
and each row exits at its own depth.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from dynexit.core.checks import batch_size, positive_integer
from dynexit.core.shapes import PyTree

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # the platforms of JAX


class Artifact(NamedTuple):
    """A file written by `export`.

    Attributes:
      path: the file.
      bytes: its size.
      platforms: the platforms on which it runs.
      batch: the number of rows it accepts, or "any".
      inputs, arguments: the arguments of `call`, as `jax.ShapeDtypeStruct` in plain dicts, lists
        and tuples; `b` is any number of rows.
      outputs: the result of `call`, likewise.
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
    """Writes `function` as one file of StableHLO that runs without dynexit and without its source.

    Reading the file needs jax and flatbuffers. Named tuples in the arguments of `function` become
    plain dicts:

        run = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
        halted = run(inputs, *arguments)  # a dict with the fields of `Halted`, if that is returned

    Rows exit at their own depths, as in the original function. XLA compiles the file once for each
    batch size.

    Args:
      function: `function(inputs, *arguments) -> tree of arrays`, for example a function that calls
        `run_until`; it is traced and not run. Arrays that it closes over (weights) become constants
        in the file.
      example: inputs, leaves `[B, ...]`, for their shapes and types; arrays or
        `jax.ShapeDtypeStruct`.
      path: the file to write; an existing file is replaced atomically.
      arguments: examples of the other arguments of `function`, such as thresholds or weights, of
        any shape. They are arguments of the file.
      batch: "any", or the number of rows for a function that cannot be traced without it
        (`criteria.at_depth` with one depth per row). With "any", `tile=None` in `run_until` also
        compiles tiles for large batches; a smaller `tile` compiles faster.
      platforms: any of "cpu", "cuda", "rocm" and "tpu"; they need not be present.

    Returns:
      `Artifact`.

    Raises:
      TypeError: `function` is not callable, its result, `example` or `arguments` is not a tree of
        arrays in dicts, lists and (named) tuples, or `path` is not a path.
      ValueError: `example` has no rows, `batch` or `platforms` is invalid, or `function` needs a
        fixed number of rows, calls back into Python or is sharded over several devices.
      OSError: `path` cannot be written.

    Example:
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.ones(3))
      >>> def run(x, limit):
      ...     above = dx.criteria.gate_above(limit, read=lambda output: output)
      ...     return dx.run_until(step, x, depth=3, criterion=above)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     artifact = dx.export(run, jnp.zeros(1), f"{folder}/net.stablehlo", arguments=(2.5,))
      ...     content = bytearray(artifact.path.read_bytes())
      >>> jax.export.deserialize(content).call(jnp.array([0.0, 1.0, 2.0]), 2.5)["exit_depth"]
      Array([3, 2, 1], dtype=int32)
    """
    if not callable(function):
        raise TypeError(f"`function` must be callable, got {type(function).__name__}")
    platforms = _checked(platforms)
    if not isinstance(arguments, (tuple, list)):
        raise TypeError(
            "`arguments` must be a tuple or a list, one entry per argument, got "
            f"{type(arguments).__name__}"
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

    # the name appears in error messages of JAX
    plain.__name__ = getattr(function, "__name__", type(function).__name__)

    def wanted(rows: Any) -> tuple[PyTree, ...]:
        """The arguments of `plain` for this number of rows."""
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
                "`function` must not call back into Python (jax.debug, io_callback): a file cannot "
                "contain a callback"
            )
        exported = jax.export.export(program, platforms=platforms)(*specs)
        if exported.nr_devices != 1:
            raise ValueError(
                f"`function` is sharded over {exported.nr_devices} devices by a sharding inside "
                "it; a file runs on one device"
            )
        content = exported.serialize()
        file.write(content)
    return Artifact(place, len(content), platforms, batch, specs[0], specs[1:], outputs)


def _outputs(
    program: Any, specs: tuple[PyTree, ...], fixed: tuple[PyTree, ...], other: tuple[PyTree, ...]
) -> PyTree:
    """Shapes of the outputs.

    Tracing with `other` sizes finds constant numbers of rows in the program, which JAX would report
    only when the file is loaded.

    Raises:
      ValueError: the program can be traced with the `fixed` sizes only.
    """
    try:
        outputs = program.eval_shape(*specs)
        program.eval_shape(*other)
    except Exception as error:
        program.eval_shape(*fixed)  # raises an error that does not depend on the number of rows
        raise ValueError(
            f"`function` cannot be traced for any number of rows ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}); change the function, or give `batch` as a "
            "number"
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
            f"`platforms` must be different ones of {', '.join(map(repr, PLATFORMS))}, "
            f"got {tuple(platforms)!r}"
        )
    return tuple(platforms)


def _shapes(tree: PyTree, name: str) -> PyTree:
    """`jax.ShapeDtypeStruct` for every leaf of an argument.

    Raises:
      TypeError: a leaf is not an array.
    """

    def shape(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        try:
            return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
        except TypeError as error:
            raise TypeError(
                f"`{name}{jax.tree_util.keystr(path)}` must be an array, got {type(leaf).__name__}"
            ) from error

    return jax.tree_util.tree_map_with_path(shape, tree)


def _plain(tree: PyTree, name: str) -> PyTree:
    """The same leaves in dicts, lists and tuples; named tuples become dicts.

    Raises:
      TypeError: a node has another type, or a dict has keys that are not strings; the error names
        the path of the node.
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
        f"`{name}` is a {type(tree).__name__}, which does not exist without its module; pass "
        "arrays in dicts, lists and tuples (for a criterion, pass its thresholds and make the "
        "criterion inside the function)"
    )


def _checked_path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be a string or a path, got {type(path).__name__}")
    return Path(path)


@contextlib.contextmanager
def _draft(path: Path) -> Generator[tuple[BinaryIO, Path], None, None]:
    """A temporary file that replaces `path` on success and is removed on an error.

    It is opened before the long work, so that an invalid path is reported early.
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
