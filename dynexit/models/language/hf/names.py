"""Names of tensors in the files of transformers, and the parameters that they hold."""

import re
from typing import Any, NamedTuple

from dynexit.models.language.block import block_shapes, norm_shapes
from dynexit.models.language.settings import CausalLM


class Names(NamedTuple):
    """Names of a family's tensors, without ".weight" and ".bias".

    Attributes:
      trunk: the name before all but the output matrix.
      embed: of the parts of "embed".
      norm: of the final norm.
      blocks: before the number of a block.
      block: of the parts of a block; several parts are one tensor, joined along the outputs.
      transposed: the linear maps of a block are stored as `[in, out]`.
      ignored: an expression of buffers that hold nothing learned.
    """

    trunk: str
    embed: dict[str, str]
    norm: str
    blocks: str
    block: dict[tuple[str, ...], str]
    transposed: bool
    ignored: str


LOGITS = "lm_head.weight"

_LLAMA_BLOCK = {
    ("norm1",): "input_layernorm",
    ("query",): "self_attn.q_proj",
    ("key",): "self_attn.k_proj",
    ("value",): "self_attn.v_proj",
    ("query_norm",): "self_attn.q_norm",
    ("key_norm",): "self_attn.k_norm",
    ("out",): "self_attn.o_proj",
    ("norm2",): "post_attention_layernorm",
    ("up",): "mlp.up_proj",
    ("gate",): "mlp.gate_proj",
    ("down",): "mlp.down_proj",
}
_GEMMA_BLOCK = {
    **_LLAMA_BLOCK,
    ("post_norm1",): "post_attention_layernorm",
    ("norm2",): "pre_feedforward_layernorm",
    ("post_norm2",): "post_feedforward_layernorm",
}
_GPT2_BLOCK = {
    ("norm1",): "ln_1",
    ("query", "key", "value"): "attn.c_attn",
    ("out",): "attn.c_proj",
    ("norm2",): "ln_2",
    ("up",): "mlp.c_fc",
    ("down",): "mlp.c_proj",
}
_EMBED, _ROTARY = {"tokens": "embed_tokens"}, r"\.rotary_emb\.inv_freq$"

LLAMA = Names("model.", _EMBED, "norm", "layers", _LLAMA_BLOCK, False, _ROTARY)
GEMMA = Names("model.", _EMBED, "norm", "layers", _GEMMA_BLOCK, False, _ROTARY)
GPT2 = Names(
    "transformer.",
    {"tokens": "wte", "positions": "wpe"},
    "ln_f",
    "h",
    _GPT2_BLOCK,
    True,
    r"\.attn\.(bias|masked_bias)$",
)


class Entry(NamedTuple):
    """A tensor of a file and the parameters in it.

    Attributes:
      name: in the file.
      paths: of the parameters; several are joined along the first axis.
      sizes: their sizes along that axis.
      shape: of the joined parameters.
      block: index along the leading axis of the parameters, or None where they have none.
      transposed: the file has the axes in the other order.
    """

    name: str
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    block: int | None = None
    transposed: bool = False


def entries(names: Names, s: CausalLM, vocabulary: int) -> list[Entry]:
    """All tensors of a model, in the order of the network.

    Example:
      >>> s = CausalLM(width=4, depth=1, heads=2, hidden=6)
      >>> entries(LLAMA, s, 9)[0]
      Entry(name='model.embed_tokens.weight', paths=('embed/tokens',), sizes=(9,), shape=(9, 4), \
block=None, transposed=False)
    """
    rows = {"tokens": vocabulary, "positions": s.context}
    used = ["tokens", *(["positions"] if s.positions == "learned" else [])]
    found = [
        Entry(f"{names.trunk}{names.embed[k]}.weight", (f"embed/{k}",), (n,), (n, s.width))
        for k, n in rows.items()
        if k in used
    ]
    shapes: Any = block_shapes(s)
    for i in range(s.depth):
        for parts, name in names.block.items():
            for leaf in shapes.get(parts[0], ()):
                each = [shapes[part][leaf] for part in parts]
                sizes = tuple(shape[0] for shape in each)
                shape = (sum(sizes), *each[0][1:])
                where = f"{names.trunk}{names.blocks}.{i}.{name}.{leaf}"
                paths = tuple(f"blocks/{part}/{leaf}" for part in parts)
                turned = names.transposed and len(shape) == 2
                found.append(Entry(where, paths, sizes, shape, i, turned))
    for leaf, shape in norm_shapes(s, s.width).items():
        name = f"{names.trunk}{names.norm}.{leaf}"
        found.append(Entry(name, (f"head/norm/{leaf}",), shape, shape))
    if not s.tied:
        size = (vocabulary, s.width)
        found.append(Entry(LOGITS, ("head/logits/weight",), size[:1], size))
    return found


def ignored(names: Names, name: str) -> bool:
    """Whether a tensor is a buffer that holds nothing learned.

    Example:
      >>> ignored(GPT2, "transformer.h.0.attn.bias"), ignored(GPT2, "h.0.attn.c_attn.bias")
      (True, False)
    """
    return re.search(names.ignored, name) is not None
