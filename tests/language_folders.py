"""Folders of tiny language models as transformers writes them, without transformers.

Tensors are drawn by numpy in the order of their sorted names, so that the logits that transformers
computed from such a folder can be stored.
"""

import numpy as np

from dynexit.models.hf_folder import write_folder

VOCABULARY = 11
TOKENS = np.array([[1, 5, 3, 8, 2, 9, 4], [7, 7, 0, 10, 6, 1, 3]])

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
SILU = {**SIZES, "hidden_act": "silu"}
GEMMA = {
    **SIZES,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 6,
    "query_pre_attn_scalar": 10,
    "sliding_window": 3,
    "cache_implementation": "hybrid",
}
# Entries as in the files of the hub: those of transformers 4 have `rope_theta`, those of 5 `rope_parameters`.
CONFIGS = {
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": VOCABULARY,
        "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "n_ctx": 16, "n_inner": None,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"max_length": 50}}, "resid_pdrop": 0.1,
        "bos_token_id": 1, "eos_token_id": 1,
    },
    "llama": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SILU, "rope_theta": 5e5,
        "rope_scaling": {
            "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
            "original_max_position_embeddings": 16,
        },
        "attention_bias": True, "pretraining_tp": 1, "torch_dtype": "float32",
    },
    "smollm": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SILU,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": True,
        "is_llama_config": True, "rope_interleaved": False, "mlp_bias": True,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", **SILU, "head_dim": None,
        "sliding_window": 3, "rope_theta": 1e4,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **SILU, "rope_theta": 1e6,
        "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **SILU, "head_dim": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "dtype": "float32",
        "use_sliding_window": False, "sliding_window": None, "tie_word_embeddings": True,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", **GEMMA,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **GEMMA,
        "sliding_window_pattern": 2, "rope_theta": 1e6, "rope_local_base_freq": 1e2,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}  # fmt: skip


def shapes(family):
    """Name -> shape of every tensor."""
    c = CONFIGS[family]
    if family == "gpt2":
        d, inner = 8, 32
        block = {
            "ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
            "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
            "mlp.c_fc.weight": (d, inner), "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, d), "mlp.c_proj.bias": (d,),
        }  # fmt: skip
        outer = {"wte.weight": (VOCABULARY, d), "wpe.weight": (16, d)}
        outer |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
        outer |= {f"h.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
        return {f"transformer.{name}": shape for name, shape in outer.items()}
    d, inner = c["hidden_size"], c["intermediate_size"]
    head = c.get("head_dim") or d // c["num_attention_heads"]
    q, kv = head * c["num_attention_heads"], head * c["num_key_value_heads"]
    linear = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d)}
    linear |= {"self_attn.o_proj": (d, q)}
    mlp = {"mlp.gate_proj": (inner, d), "mlp.up_proj": (inner, d), "mlp.down_proj": (d, inner)}
    biased = {
        "llama": list(linear),
        "smollm": list(mlp),
        "qwen2": list(linear)[:3],
    }.get(family, [])
    linear |= mlp
    norms = {"input_layernorm": d, "post_attention_layernorm": d}
    if family in ("qwen3", "gemma3"):
        norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
    if family.startswith("gemma"):
        norms |= {"pre_feedforward_layernorm": d, "post_feedforward_layernorm": d}
    block = {f"{name}.weight": shape for name, shape in linear.items()}
    block |= {f"{name}.bias": linear[name][:1] for name in biased}
    block |= {f"{name}.weight": (size,) for name, size in norms.items()}
    found = {"model.embed_tokens.weight": (VOCABULARY, d), "model.norm.weight": (d,)}
    if family in ("llama", "mistral", "qwen2"):
        found["lm_head.weight"] = (VOCABULARY, d)
    return found | {f"model.layers.{i}.{n}": s for i in range(2) for n, s in block.items()}


def tensors(family, dtype=np.float32):
    """Matrices N(0, 0.16), biases N(0, 0.16), scales of norms near 1, or near 0 for Gemma."""
    random = np.random.default_rng(0)
    found = {}
    for name, shape in sorted(shapes(family).items()):
        drawn = 0.4 * random.normal(size=shape)
        scale = len(shape) == 1 and name.endswith("weight") and not family.startswith("gemma")
        found[name] = (drawn + scale).astype(dtype)
    return found


def write(folder, family, dtype=np.float32, **changed):
    """The folder; entries of `changed` that are None are left out."""
    config = {k: v for k, v in {**CONFIGS[family], **changed}.items() if v is not None}
    return write_folder(folder, config, tensors(family, dtype))


def logits_of(loaded, inputs):
    """Of full depth, float32 `[B, L, V]`."""
    import jax
    import jax.numpy as jnp

    import dynexit as dx

    model = loaded.model
    run = lambda p, x: dx.run_full(model.steps(p), model.embed(p, x), model.depth)[1]["logits"]
    logits = jax.jit(run)(loaded.params, jax.tree.map(jnp.asarray, inputs))
    return np.asarray(logits, np.float32)
