"""The tensors of BERT, as `transformers` names them."""

from typing import Any

from dynexit.models.hf_weights import Tensor, linear, norm
from dynexit.models.language.encoder_settings import BertEncoder

OTHERS = r"(pooler|classifier|qa_outputs|cls)\.|embeddings\.(position_ids|token_type_ids)$"


def embeddings(s: BertEncoder) -> list[Tensor]:
    """The three tables and their norm, which ALBERT has too."""
    d, tables = s.embedding or s.width, (("word", "words", s.vocabulary),)
    tables += (("position", "positions", s.positions), ("token_type", "types", s.types))
    rows = [
        Tensor(f"embeddings.{name}_embeddings.weight", f"embed/{path}", (n, d), (n, d))
        for name, path, n in tables
    ]
    return rows + norm("embeddings.LayerNorm", "embed/norm", d)


def table(s: BertEncoder) -> list[Tensor]:
    """The tensors of a BERT."""
    d, split, at = s.width, (s.heads, s.width // s.heads), "encoder.layer.{}"
    rows = embeddings(s)
    for name in ("query", "key", "value"):
        rows += linear(f"{at}.attention.self.{name}", f"block/{name}", split, (d,))
    return [
        *rows,
        *linear(f"{at}.attention.output.dense", "block/out", (d,), split),
        *norm(f"{at}.attention.output.LayerNorm", "block/norm1", d),
        *linear(f"{at}.intermediate.dense", "block/up", (s.hidden,), (d,)),
        *linear(f"{at}.output.dense", "block/down", (d,), (s.hidden,)),
        *norm(f"{at}.output.LayerNorm", "block/norm2", d),
    ]


def config_of(s: BertEncoder) -> dict[str, Any]:
    """`config.json` of a BERT of one's own; ALBERT's has two entries more."""
    return {
        "architectures": ["BertModel"],
        "model_type": s.kind,
        "vocab_size": s.vocabulary,
        "hidden_size": s.width,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "intermediate_size": s.hidden,
        "max_position_embeddings": s.positions,
        "type_vocab_size": s.types,
        "hidden_act": s.activation,
        "layer_norm_eps": s.epsilon,
        "pad_token_id": s.padding,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
    }
