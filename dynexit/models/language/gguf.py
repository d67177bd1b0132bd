"""Language models from GGUF files of the Llama architecture."""

import os
from typing import Any

import numpy as np

from dynexit.core.data import Tokens
from dynexit.core.files import local
from dynexit.core.shapes import HostArray
from dynexit.models.language.hf.families import config_of, resolved
from dynexit.models.language.hf.folder import assembled
from dynexit.models.language.hf.names import LLAMA, LOGITS, Entry, entries
from dynexit.models.language.pretrained import Pretrained
from dynexit.models.language.settings import CausalLM, RopeScaling

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0")
"""Types of tensors that are read."""
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    LOGITS: "output.weight",
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
}


class GgufFile:
    """The entries and tensors of a file, with errors that name it.

    Args:
      path: of the file.

    Raises:
      ImportError: the package `gguf` is missing.
      ValueError: no such file, or a damaged one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import gguf
        except ImportError as error:
            raise ImportError(
                "reading GGUF files needs the package gguf: pip install 'dynexit[language]'"
            ) from error
        self.path = local(path, "path")
        if not self.path.is_file():
            raise ValueError(f"`path` must be a GGUF file, got {os.fspath(path)!r}, which is none")
        try:
            reader: Any = gguf.GGUFReader(self.path)
            self._values = {name: field.contents() for name, field in reader.fields.items()}
        except Exception as error:  # the reader raises whatever the damaged bytes lead to
            raise ValueError(
                f"{self.path} is no whole GGUF file ({error}); it may be truncated: copy it again"
            ) from error
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}

    def value(self, name: str, default: Any = ...) -> Any:
        """An entry; without a default it must be there."""
        if name not in self._values and default is ...:
            raise ValueError(f"{self.path} has no entry {name!r}")
        return self._values.get(name, default)

    def read(self, name: str, shape: tuple[int, ...]) -> HostArray:
        """A tensor; what is quantised becomes float32."""
        import gguf

        if name not in self.tensors:
            raise ValueError(f"{self.path} has no tensor {name!r}")
        tensor, where = self.tensors[name], f"{self.path}: {name!r}"
        if (kind := tensor.tensor_type.name) not in KINDS:
            raise ValueError(f"{where} must be of {', '.join(KINDS)}, got {kind}")
        found = tuple(int(n) for n in tensor.shape[::-1])
        if found != shape:
            raise ValueError(f"{where} must have shape {list(shape)}, got {list(found)}")
        if kind in ("F32", "F16"):
            array = np.array(tensor.data)
        else:
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if not np.isfinite(array).all():
            raise ValueError(f"{where} has values that are not finite; the file is damaged")
        return array.reshape(shape)


def from_gguf(path: str | os.PathLike[str], dtype: Any = None) -> Pretrained:
    """Reads a language model of the Llama architecture from a GGUF file.

    The tokenizer of the file is read by `dx.data.tokenizers.from_gguf`. `to_hf` writes the model as
    a folder of transformers.

    Args:
      path: with tensors of F32, F16, BF16, Q8_0, Q4_1 or Q4_0.
      dtype: of the parameters; None for float32.

    Returns:
      `Pretrained`, with the architecture "LlamaForCausalLM".

    Raises:
      ImportError: the package `gguf` is missing.
      ValueError: another architecture, an option or a type that is not supported, a missing,
        unknown, wrongly shaped or damaged tensor; the file, and the entry or tensor, are named.
    """
    file = GgufFile(path)
    settings, vocabulary = _settings(file)
    wanted = entries(LLAMA, settings, vocabulary)
    names = {entry.name: _name(entry.name) for entry in wanted}
    if others := sorted(set(file.tensors) - set(names.values())):
        raise ValueError(f"{file.path} has a tensor {others[0]!r}, which is not supported")
    heads = {"blocks/query/weight": settings.heads, "blocks/key/weight": settings.kv}

    def read(entry: Entry) -> HostArray:
        array = file.read(names[entry.name], entry.shape)
        turned = heads.get(entry.paths[0])
        return array if turned is None else _halves(array, turned)

    params = assembled(wanted, read, np.float32 if dtype is None else dtype)
    architecture, config = config_of(settings, vocabulary)
    for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos")):
        config[ours] = file.value(f"tokenizer.ggml.{theirs}_token_id", None)
    config["torch_dtype"] = str(params["embed"]["tokens"].dtype)
    model = settings.build(Tokens(vocabulary), vocabulary)
    return Pretrained(settings, vocabulary, model, params, architecture, config)


def _settings(file: GgufFile) -> tuple[CausalLM, int]:
    if (kind := file.value("general.architecture")) != "llama":
        raise ValueError(f"{file.path}: the architecture must be llama, got {kind}")
    get = lambda name, default=...: file.value(f"llama.{name}", default)
    if get("expert_count", 0):
        raise ValueError(f"{file.path}: 'llama.expert_count' must be 0, got {get('expert_count')}")
    width, heads = get("embedding_length"), get("attention.head_count")
    head = get("attention.key_length", width // max(heads, 1))
    if (turned := get("rope.dimension_count", head)) != head:
        raise ValueError(
            f"{file.path}: 'llama.rope.dimension_count' must be the width of a head, {head}, got "
            f"{turned}"
        )
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path} has no tensor 'token_embd.weight'")
    settings = CausalLM(
        width=width,
        depth=get("block_count"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_width=head,
        hidden=get("feed_forward_length"),
        context=get("context_length"),
        norm_epsilon=_short(get("attention.layer_norm_rms_epsilon")),
        rope_base=_short(get("rope.freq_base", 10_000.0)),
        rope_scaling=_scaling(file, get("rope.scaling.type", "none")),
        tied="output.weight" not in file.tensors,
    )
    if found := settings.validate():
        raise ValueError(f"{file.path}: {found[0]}")
    return resolved(settings), int(file.tensors["token_embd.weight"].shape[1])


def _scaling(file: GgufFile, kind: str) -> RopeScaling | None:
    if kind not in ("none", "linear"):
        raise ValueError(
            f"{file.path}: 'llama.rope.scaling.type' must be one of none, linear, got {kind!r}"
        )
    factor = _short(file.value("llama.rope.scaling.factor")) if kind == "linear" else 1.0
    return RopeScaling("linear", factor) if kind == "linear" else None


def _short(value: float) -> float:
    """The shortest decimal number that is the same float32.

    Example:
      >>> _short(9.999999747378752e-06)
      1e-05
    """
    return float(str(np.float32(value)))


def _name(name: str) -> str:
    """The name in a GGUF file of a tensor of transformers.

    Example:
      >>> _name("model.layers.3.self_attn.q_proj.weight")
      'blk.3.attn_q.weight'
    """
    if name in _OUTER:
        return _OUTER[name]
    _, _, block, *part, leaf = name.split(".")
    return f"blk.{block}.{_BLOCK['.'.join(part)]}.{leaf}"


def _halves(weight: HostArray, heads: int) -> HostArray:
    """The rows of a query or key matrix with the halves that RoPE turns one after the other; GGUF
    files interleave them.

    Example:
      >>> _halves(np.arange(4)[:, None], 1).ravel().tolist()
      [0, 2, 1, 3]
    """
    rows = weight.reshape(heads, -1, 2, weight.shape[-1])
    return rows.swapaxes(1, 2).reshape(weight.shape)
