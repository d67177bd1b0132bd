"""Language models from and to folders of transformers."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.data import Tokens
from dynexit.core.settings import refuse_invalid
from dynexit.core.shapes import HostArray, PyTree
from dynexit.models.hf_folder import HfFolder, open_folder, write_folder
from dynexit.models.language.hf.families import (
    FAMILIES,
    architecture_of,
    config_of,
    read_settings,
)
from dynexit.models.language.hf.names import LOGITS, Entry, Names, entries, ignored
from dynexit.models.language.pretrained import Pretrained
from dynexit.models.language.settings import CausalLM


def from_hf(folder: str | os.PathLike[str], dtype: Any = None) -> Pretrained:
    """Reads a decoder-only language model from a folder that transformers wrote.

    Classes: Llama 2 and 3 (and SmolLM), Mistral, Qwen 2 and 3, Gemma 2 and 3 (text), GPT-2. Nothing
    is downloaded, and no pickle is read.

    Args:
      folder: with `config.json`, and `model.safetensors` or its shards.
      dtype: of the parameters, `jnp.bfloat16` for example; None for those of the files.

    Returns:
      `Pretrained`.

    Raises:
      ValueError: an unknown architecture, an option that is not supported, a missing, unknown,
        wrongly shaped or damaged tensor, a value that is not finite, or weights in pickles alone;
        the file, and the entry or tensor, are named.

    Example:
      >>> import tempfile, dynexit as dx
      >>> settings = dx.models.CausalLM(width=8, depth=2, heads=2)
      >>> params = settings.build(dx.Tokens(20), 20).init(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as place:
      ...     path = to_hf(f"{place}/new", settings, params)
      ...     loaded = from_hf(path)
      >>> loaded.architecture, loaded.vocabulary
      ('LlamaForCausalLM', 20)
    """
    opened = open_folder(folder)
    architecture = architecture_of(opened.config, opened.path)
    settings, vocabulary = read_settings(architecture, opened.config, opened.path)
    names = FAMILIES[architecture].names
    wanted = entries(names, settings, vocabulary)
    stored = _stored_names(opened, names, wanted, settings.tied)

    def read(entry: Entry) -> HostArray:
        shape = entry.shape[::-1] if entry.transposed else entry.shape
        array = opened.read(stored[entry.name], shape)
        return array.T if entry.transposed else array

    params = assembled(wanted, read, dtype)
    model = settings.build(Tokens(vocabulary), vocabulary)
    return Pretrained(settings, vocabulary, model, params, architecture, opened.config)


def to_hf(
    folder: str | os.PathLike[str], model: Pretrained | CausalLM, params: PyTree = None
) -> Path:
    """Writes a folder that transformers and `from_hf` read.

    What `from_hf` read is written with the same bits and the same configuration. The tensors are
    copied to this host; gather those of a mesh first (`dx.training.whole`).

    Args:
      folder: a new folder, or an empty one.
      model: what was read, or the settings of a model, for which the class of transformers is
        chosen.
      params: trained parameters; None for those of `model`.

    Returns:
      The folder.

    Raises:
      TypeError: settings without parameters.
      ValueError: settings of no known class, or parameters that do not belong to the settings.
      FileExistsError: the folder holds something.

    Example:
      >>> import tempfile, dynexit as dx
      >>> settings = dx.models.CausalLM(width=8, depth=1, heads=2, qk_norm=True)
      >>> params = settings.build(dx.Tokens(20), 20).init(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as place:
      ...     from_hf(to_hf(f"{place}/new", settings, params)).architecture
      'Qwen3ForCausalLM'
    """
    if isinstance(model, Pretrained):
        params = model.params if params is None else params
    elif params is None:
        raise TypeError("`params` must be given with settings, got None")
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    if "embed/tokens" not in flat:
        raise ValueError("`params` must have 'embed/tokens', got parameters of another model")
    dtype = str(flat["embed/tokens"].dtype)
    if isinstance(model, Pretrained):
        settings, vocabulary, architecture = model.settings, model.vocabulary, model.architecture
        config = dict(model.config)
        config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    else:
        refuse_invalid(model)
        settings, vocabulary = model, flat["embed/tokens"].shape[0]
        architecture, config = config_of(settings, vocabulary)
        config |= {"bos_token_id": None, "eos_token_id": None, "torch_dtype": dtype}
    wanted = entries(FAMILIES[architecture].names, settings, vocabulary)
    if others := sorted(set(flat) - {path for entry in wanted for path in entry.paths}):
        raise ValueError(f"`params` has {others[0]!r}, and {architecture} has nothing like it")
    arrays = {path: np.asarray(leaf) for path, leaf in flat.items()}
    return write_folder(folder, config, {e.name: _joined(e, arrays) for e in wanted})


def assembled(
    wanted: Iterable[Entry], read: Callable[[Entry], HostArray], dtype: Any = None
) -> PyTree:
    """The parameters of a model, from its tensors.

    Args:
      wanted: all entries of the model.
      read: the joined parameters of an entry.
      dtype: of the parameters; None for those that `read` returns.

    Raises:
      TypeError: `dtype` is no floating point type.
      ValueError: blocks of different types without `dtype`.
    """
    if dtype is not None and not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"`dtype` must be a floating point type, got {dtype!r}")
    found: dict[str, list[HostArray]] = {}
    stacked: set[str] = set()
    for entry in wanted:
        array = read(entry)
        array = array if dtype is None else array.astype(jnp.dtype(dtype))
        parts = np.split(array, np.cumsum(entry.sizes)[:-1])
        for path, part in zip(entry.paths, parts, strict=True):
            found.setdefault(path, []).append(part)
            if entry.block is not None:
                stacked.add(path)
            if part.dtype != found[path][0].dtype:
                raise ValueError(
                    f"{entry.name!r} is of {part.dtype}, in the first block it is of "
                    f"{found[path][0].dtype}; give one type as `dtype`"
                )
    params: dict[str, Any] = {}
    for path in list(found):
        parts = found.pop(path)
        *above, leaf = path.split("/")
        place = params
        for name in above:
            place = place.setdefault(name, {})
        place[leaf] = jnp.asarray(np.stack(parts) if path in stacked else parts[0])
    return params


def _joined(entry: Entry, arrays: dict[str, HostArray]) -> HostArray:
    """The tensor of a file."""
    parts: list[HostArray] = []
    for path, size in zip(entry.paths, entry.sizes, strict=True):
        shape = (size, *entry.shape[1:])
        if path not in arrays:
            raise ValueError(f"`params` must have {path!r}, which the settings ask for")
        whole = arrays[path]
        if entry.block is None:
            part = whole
        elif entry.block < len(whole):
            part = whole[entry.block]
        else:
            raise ValueError(
                f"`params` has {len(whole)} blocks of {path!r}, and the settings have more"
            )
        if part.shape != shape:
            raise ValueError(f"{path!r} of `params` must end in {shape}, got {part.shape}")
        parts.append(part)
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return joined.T if entry.transposed else joined


def _stored_names(
    opened: HfFolder, names: Names, wanted: list[Entry], tied: bool
) -> dict[str, str]:
    """Name of every entry in the files: older ones leave out that of the trunk."""
    short = not any(name.startswith(names.trunk) for name in opened.tensors)
    stored = {e.name: e.name.removeprefix(names.trunk) if short else e.name for e in wanted}
    for name, tensor in sorted(opened.tensors.items()):
        if name in stored.values() or ignored(names, name):
            continue
        if name != LOGITS or not tied:
            raise ValueError(
                f"{tensor.file} has a tensor {name!r}, which the architecture and config.json do "
                "not have"
            )
        embedding = opened.read_any(stored[wanted[0].name])
        if opened.read_any(name).tobytes() != embedding.tobytes():
            raise ValueError(
                f"{tensor.file}: {name!r} must equal the embedding, since 'tie_word_embeddings' "
                "is true"
            )
    return stored
