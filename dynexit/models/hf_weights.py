"""Tensors of a checkpoint as parameters, and back, bit by bit.

A table has one row a tensor: its name, its place in the parameters, and the order of its axes.
Tensors whose name has `{}` are there once a block, and are stacked.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dynexit.core.shapes import HostArray, PyTree
from dynexit.core.types import Model
from dynexit.models.hf_folder import INDEX, HfFolder


class Tensor(NamedTuple):
    """A row of a table.

    Attributes:
      name: in the file, without the prefix of the base model.
      path: in the trunk's parameters, "block/query/kernel" for example.
      shape: in the file.
      to: of the parameter, without the axis of blocks.
      axes: the file's axes in the order of the parameter's; None for the same order.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    to: tuple[int, ...]
    axes: tuple[int, ...] | None = None

    @property
    def order(self) -> tuple[int, ...]:
        """`axes`, also where it is the file's own order."""
        return self.axes or tuple(range(len(self.shape)))


class Original(NamedTuple):
    """What is kept of a folder beside the parameters, so that it can be written again.

    Attributes:
      config: the content of `config.json`.
      prefix: of the base model's names.
      dtypes: by name, of the tensors that became parameters.
      others: tensors of parts that are no trunk (a pooler, a classifier), by name.
    """

    config: dict[str, Any]
    prefix: str
    dtypes: dict[str, np.dtype[Any]]
    others: dict[str, HostArray]


class Pretrained(NamedTuple):
    """A checkpoint as a model.

    Attributes:
      settings: the constructor of the model, with exit heads: `settings.build(inputs, classes)`.
      model: without heads; outputs `{"hidden": [E, B, L, D]}`, the tokens after every block.
      params: of the model, `{"trunk": ...}`, host arrays of float32.
      original: what an export needs beside them.
    """

    settings: Any
    model: Model
    params: PyTree
    original: Original


def linear(name: str, path: str, outs: Sequence[int], ins: Sequence[int]) -> list[Tensor]:
    """A weight `[outs, ins]` and a bias `[outs]` as kernel `[ins, outs]` and bias.

    Example:
      >>> [t.to for t in linear("query", "query", (2, 4), (8,))]
      [(8, 2, 4), (2, 4)]
    """
    out, into = int(np.prod(outs)), int(np.prod(ins))
    return [
        Tensor(f"{name}.weight", f"{path}/kernel", (out, into), (*ins, *outs), (1, 0)),
        Tensor(f"{name}.bias", f"{path}/bias", (out,), tuple(outs)),
    ]


def norm(name: str, path: str, width: int) -> list[Tensor]:
    """Scale and bias of a layer norm."""
    parts = (("weight", "scale"), ("bias", "bias"))
    return [Tensor(f"{name}.{a}", f"{path}/LayerNorm_0/{b}", (width,), (width,)) for a, b in parts]


def read_weights(
    folder: HfFolder, table: Sequence[Tensor], blocks: int, prefix: str, others: str
) -> tuple[PyTree, Original]:
    """The trunk's parameters, and what is kept for an export.

    Args:
      folder: the checkpoint.
      table: every tensor that becomes a parameter.
      blocks: of those whose name has `{}`.
      prefix: of the base model's names, where the checkpoint has a head beside it ("vit.").
      others: a regular expression for the names of further tensors that may be there.

    Returns:
      Parameters of float32, and `Original`.

    Raises:
      ValueError: a tensor that is missing, unknown, of another shape, or not finite; the file and
        the tensor are named.
    """
    prefix = prefix if any(name.startswith(prefix) for name in folder.tensors) else ""
    dtypes: dict[str, np.dtype[Any]] = {}

    def one(tensor: Tensor, name: str) -> HostArray:
        found = next((n for n in _names(prefix, name) if n in folder.tensors), None)
        if found is None:
            raise ValueError(f"{_holder(folder)}: the tensor {prefix + name!r} is missing")
        array = folder.read(found, tensor.shape)
        dtypes[found] = array.dtype
        array = array.astype(np.float32)
        return np.ascontiguousarray(array.transpose(tensor.order)).reshape(tensor.to)

    params: PyTree = {}
    for tensor in table:
        *place, leaf = tensor.path.split("/")
        within = params
        for part in place:
            within = within.setdefault(part, {})
        if "{}" in tensor.name:
            within[leaf] = np.stack([one(tensor, tensor.name.format(i)) for i in range(blocks)])
        else:
            within[leaf] = one(tensor, tensor.name)
    known = re.compile(others)
    rest = [name for name in folder.tensors if name not in dtypes]
    for name in rest:
        if not known.match(name.removeprefix(prefix)):
            raise ValueError(f"{folder.tensors[name].file}: the tensor {name!r} is not known")
    kept = {name: folder.read_any(name) for name in rest}
    return params, Original(folder.config, prefix, dtypes, kept)


def tensors_of(
    params: PyTree, table: Sequence[Tensor], blocks: int, original: Original | None
) -> dict[str, HostArray]:
    """The inverse of `read_weights`.

    Args:
      params: of the trunk.
      table, blocks: as there.
      original: of the folder that was read, for the names, types and other tensors; None for a
        network of one's own, in float32.

    Raises:
      ValueError: a parameter that is missing, unknown, or of another shape; or one that the type
        of the original cannot hold.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    held = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a) for path, a in leaves
    }
    original = original or Original({}, "", {}, {})
    found = dict(original.others)
    for tensor in table:
        array = held.pop(tensor.path, None)
        several = "{}" in tensor.name
        shape = (blocks, *tensor.to) if several else tensor.to
        if array is None or array.shape != shape:
            came = "nothing" if array is None else list(array.shape)
            raise ValueError(f"`params`: {tensor.path} must have shape {list(shape)}, got {came}")
        for i, values in enumerate(array if several else array[None]):
            name = tensor.name.format(i)
            names = _names(original.prefix, name)
            name = next((n for n in names if n in original.dtypes), names[0])
            back = _in_file_order(values, tensor)
            found[name] = back.astype(original.dtypes.get(name, np.dtype(np.float32)))
            if not np.array_equal(found[name].astype(np.float32), back):
                raise ValueError(
                    f"`params`: {tensor.path} has values that {found[name].dtype}, the type of "
                    f"{name!r} in the original, does not hold; export without `original`"
                )
    if held:
        raise ValueError(f"`params`: {min(held)} is not known")
    return found


def _in_file_order(values: HostArray, tensor: Tensor) -> HostArray:
    moved = values.reshape([tensor.shape[k] for k in tensor.order])
    return np.ascontiguousarray(moved.transpose(np.argsort(tensor.order)))


def _names(prefix: str, name: str) -> tuple[str, str]:
    """A tensor's name today, and that of the first checkpoints of BERT."""
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return prefix + name, prefix + old.replace("LayerNorm.bias", "LayerNorm.beta")


def _holder(folder: HfFolder) -> str:
    files = {stored.file for stored in folder.tensors.values()}
    return str(next(iter(files)) if len(files) == 1 else folder.path / INDEX)
