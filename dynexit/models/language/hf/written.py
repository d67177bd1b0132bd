"""Settings to `config.json` of transformers, a function a family.

A function may leave out what its class does not have; `families.config_of` compares what is read
again.
"""

from typing import Any

from dynexit.models.language.hf.rope import written_rope
from dynexit.models.language.settings import CausalLM

WRITTEN = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def _write_shared(s: CausalLM) -> dict[str, Any]:
    return {
        "hidden_size": s.width,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv,
        "head_dim": s.head,
        "intermediate_size": s.inner,
        "max_position_embeddings": s.context,
        "rms_norm_eps": s.norm_epsilon,
        "hidden_act": WRITTEN[s.activation],
        "rope_parameters": written_rope(s),
    }


def _layer_types(s: CausalLM) -> list[str]:
    kind = lambda i: "full_attention" if s.window_of(i) is None else "sliding_attention"
    return [kind(i) for i in range(s.depth)]


def write_llama(s: CausalLM) -> dict[str, Any]:
    """Llama."""
    return {**_write_shared(s), "attention_bias": s.qkv_bias, "mlp_bias": s.mlp_bias}


def write_mistral(s: CausalLM) -> dict[str, Any]:
    """Mistral."""
    return {**_write_shared(s), "sliding_window": s.window}


def write_qwen2(s: CausalLM) -> dict[str, Any]:
    """Qwen 2."""
    found = _write_shared(s)
    windowed = {"use_sliding_window": s.window is not None, "sliding_window": s.window}
    first = next((i for i in range(s.depth) if s.window_of(i)), s.depth)
    return {**found, **windowed, "max_window_layers": first, "layer_types": _layer_types(s)}


def write_qwen3(s: CausalLM) -> dict[str, Any]:
    """Qwen 3."""
    return {**write_qwen2(s), "head_dim": s.head, "attention_bias": s.qkv_bias}


def write_gemma2(s: CausalLM) -> dict[str, Any]:
    """Gemma 2."""
    found = _write_shared(s)
    return {
        **found,
        "hidden_activation": found.pop("hidden_act"),
        "sliding_window": s.window or 4096,
        "layer_types": _layer_types(s),
        "attention_bias": s.qkv_bias,
        "query_pre_attn_scalar": max(1, round((s.attention_scale or s.head**-0.5) ** -2)),
        "attn_logit_softcapping": s.attention_cap,
        "final_logit_softcapping": s.logits_cap,
    }


def write_gemma3(s: CausalLM) -> dict[str, Any]:
    """Gemma 3, text."""
    near = {"rope_type": "default", "rope_theta": s.sliding_rope_base or 1e4}
    rope = {"full_attention": written_rope(s), "sliding_attention": near}
    return {**write_gemma2(s), "rope_parameters": rope, "attn_logit_softcapping": None}


def write_gpt2(s: CausalLM) -> dict[str, Any]:
    """GPT-2."""
    return {
        "n_embd": s.width,
        "n_layer": s.depth,
        "n_head": s.heads,
        "n_inner": s.inner,
        "n_positions": s.context,
        "layer_norm_epsilon": s.norm_epsilon,
        "activation_function": WRITTEN[s.activation],
    }
