"""The tensors of ALBERT, as `transformers` names them."""

from typing import Any

from dynexit.models.hf_weights import Tensor, linear, norm
from dynexit.models.language import bert
from dynexit.models.language.encoder_settings import BertEncoder

OTHERS = rf"{bert.OTHERS}|(predictions|sop_classifier)\."


def table(s: BertEncoder) -> list[Tensor]:
    """The tensors of an ALBERT; `{}` is the group."""
    d, split = s.width, (s.heads, s.width // s.heads)
    at = "encoder.albert_layer_groups.{}.albert_layers.0"
    rows = bert.embeddings(s)
    for name in ("query", "key", "value"):
        rows += linear(f"{at}.attention.{name}", f"block/{name}", split, (d,))
    narrow = (s.embedding or d,)
    return [
        *rows,
        *linear("encoder.embedding_hidden_mapping_in", "embed/projection", (d,), narrow),
        *linear(f"{at}.attention.dense", "block/out", (d,), split),
        *norm(f"{at}.attention.LayerNorm", "block/norm1", d),
        *linear(f"{at}.ffn", "block/up", (s.hidden,), (d,)),
        *linear(f"{at}.ffn_output", "block/down", (d,), (s.hidden,)),
        *norm(f"{at}.full_layer_layer_norm", "block/norm2", d),
    ]


def config_of(s: BertEncoder) -> dict[str, Any]:
    """`config.json` of an ALBERT of one's own."""
    own = {"embedding_size": s.embedding or s.width, "num_hidden_groups": s.groups}
    return bert.config_of(s) | own | {"architectures": ["AlbertModel"], "inner_group_num": 1}
