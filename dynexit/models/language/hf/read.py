"""`config.json` of transformers to the fields of `CausalLM`, a function a family.

Entries that a file may leave out have the default of their class in transformers.
"""

from typing import Any

from dynexit.models.hf_config import Config
from dynexit.models.language.hf.rope import read_part, read_rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def _activation(config: Config, name: str, default: Any = ...) -> str:
    return ACTIVATIONS[config.choice(name, tuple(ACTIVATIONS), default)]


def _integer(config: Config, name: str, default: int) -> int:
    """An integer that may be null."""
    return default if config.value(name, None) is None else config.integer(name)


def _number(config: Config, name: str) -> float | None:
    """A number that may be null."""
    return None if config.value(name, None) is None else config.number(name)


def _sizes(config: Config, head: int | None) -> dict[str, Any]:
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    return dict(
        width=width,
        depth=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=_integer(config, "num_key_value_heads", heads),
        head_width=_integer(config, "head_dim", head or max(1, width // heads)),
        hidden=config.integer("intermediate_size"),
        context=config.integer("max_position_embeddings"),
        norm_epsilon=config.number("rms_norm_eps"),
    )


def _sliding(config: Config, layers: list[str], window: int | None) -> dict[str, Any]:
    """`layers` is what transformers assumes where the file has no `layer_types`."""
    found = config.value("layer_types", None) or layers
    kinds = ("sliding_attention", "full_attention")
    if not isinstance(found, list) or len(found) != len(layers) or not set(found) <= set(kinds):
        raise config.refuse("layer_types", f"one of {', '.join(kinds)} for each block")
    flags = tuple(kind == kinds[0] for kind in found)
    if any(flags) and window is None:
        raise config.refuse("sliding_window", "an integer where blocks are sliding")
    return {"window": window if any(flags) else None, "sliding": flags if window else ()}


def read_llama(config: Config) -> dict[str, Any]:
    """Llama."""
    bias = config.boolean("attention_bias", False)
    return dict(
        **_sizes(config, None),
        **read_rope(config),
        activation=_activation(config, "hidden_act"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.boolean("mlp_bias", False),
    )


def read_mistral(config: Config) -> dict[str, Any]:
    """Mistral."""
    window = config.value("sliding_window", None)
    return dict(
        **_sizes(config, None),
        **read_rope(config),
        activation=_activation(config, "hidden_act"),
        window=None if window is None else config.integer("sliding_window"),
    )


def _read_qwen(config: Config, head: int | None) -> dict[str, Any]:
    sizes = _sizes(config, head)
    used = config.boolean("use_sliding_window", False)
    window = config.value("sliding_window", None)
    window = config.integer("sliding_window") if used and window is not None else None
    first = config.integer("max_window_layers", 28, low=0)
    slides = lambda i: window is not None and i >= first
    names = ["sliding_attention" if slides(i) else "full_attention" for i in range(sizes["depth"])]
    return dict(
        **sizes,
        **read_rope(config),
        **_sliding(config, names, window),
        activation=_activation(config, "hidden_act"),
    )


def read_qwen2(config: Config) -> dict[str, Any]:
    """Qwen 2."""
    return dict(**_read_qwen(config, None), qkv_bias=True)


def read_qwen3(config: Config) -> dict[str, Any]:
    """Qwen 3."""
    bias = config.boolean("attention_bias", False)
    return dict(**_read_qwen(config, 128), qk_norm=True, qkv_bias=bias, out_bias=bias)


def _read_gemma(config: Config, pattern: int) -> dict[str, Any]:
    sizes, bias = _sizes(config, 256), config.boolean("attention_bias", False)
    config.value("hidden_act", None)  # which transformers does not read
    kinds = [
        "sliding_attention" if (i + 1) % pattern else "full_attention"
        for i in range(sizes["depth"])
    ]
    window = _integer(config, "sliding_window", 4096)
    return dict(
        **sizes,
        **_sliding(config, kinds, window),
        activation=_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        norm_offset=True,
        post_norms=True,
        qkv_bias=bias,
        out_bias=bias,
        embed_scale=sizes["width"] ** 0.5,
        attention_scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_cap=_number(config, "attn_logit_softcapping"),
        logits_cap=_number(config, "final_logit_softcapping"),
    )


def read_gemma2(config: Config) -> dict[str, Any]:
    """Gemma 2."""
    return dict(**_read_gemma(config, 2), **read_rope(config))


def read_gemma3(config: Config) -> dict[str, Any]:
    """Gemma 3, text."""
    config.absent("attn_logit_softcapping")  # which the class of transformers does not apply
    pattern = config.integer("_sliding_window_pattern", config.integer("sliding_window_pattern", 6))
    found = dict(**_read_gemma(config, pattern), qk_norm=True)
    far, near = config.number("rope_theta", 1e6), config.number("rope_local_base_freq", 1e4)
    rope, old = config.part("rope_parameters"), config.part("rope_scaling")
    full = old or rope.part("full_attention")
    base, scaling = read_part(full, far, found["context"])
    sliding = rope.part("sliding_attention")
    sliding.only(rope_type="default")
    local, _ = read_part(sliding, near, found["context"])
    rope.finish(())
    return dict(**found, rope_base=base, rope_scaling=scaling, sliding_rope_base=local)


def read_gpt2(config: Config) -> dict[str, Any]:
    """GPT-2."""
    config.only(scale_attn_weights=True)
    config.absent("scale_attn_by_inverse_layer_idx")
    width = config.integer("n_embd")
    return dict(
        width=width,
        depth=config.integer("n_layer"),
        heads=config.integer("n_head"),
        hidden=_integer(config, "n_inner", 4 * width),
        context=config.integer("n_positions"),
        norm="layer",
        norm_epsilon=config.number("layer_norm_epsilon"),
        activation=_activation(config, "activation_function"),
        gated=False,
        positions="learned",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )
