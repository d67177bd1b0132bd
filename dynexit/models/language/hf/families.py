"""The families of language models that transformers writes and dynexit reads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dynexit.models.hf_config import CONFIG, UNUSED, Config
from dynexit.models.language.hf import read, written
from dynexit.models.language.hf.names import GEMMA, GPT2, LLAMA, Names
from dynexit.models.language.settings import CausalLM

TRAINING_ONLY = frozenset(
    "attention_dropout attn_pdrop cache_implementation embd_pdrop is_llama_config n_ctx "
    "pretraining_tp reorder_and_upcast_attn resid_pdrop summary_activation summary_first_dropout "
    "summary_proj_to_labels summary_type summary_use_proj transformers.js_config".split()
)
"""Further entries that do not change the logits."""
UNSUPPORTED = (
    "add_cross_attention is_encoder_decoder num_experts num_local_experts pruned_heads "
    "quantization_config rope_interleaved tie_encoder_decoder use_bidirectional_attention use_mrope"
).split()


class Family(NamedTuple):
    """How a class of transformers is read and written.

    Attributes:
      model_type: its entry in `config.json`.
      names: of its tensors.
      read: the fields of `CausalLM` from a configuration.
      write: entries of `config.json` from settings.
      tied: `tie_word_embeddings` where it is absent.
    """

    model_type: str
    names: Names
    read: Callable[[Config], dict[str, Any]]
    write: Callable[[CausalLM], dict[str, Any]]
    tied: bool


FAMILIES = {
    "LlamaForCausalLM": Family("llama", LLAMA, read.read_llama, written.write_llama, False),
    "MistralForCausalLM": Family("mistral", LLAMA, read.read_mistral, written.write_mistral, False),
    "Qwen2ForCausalLM": Family("qwen2", LLAMA, read.read_qwen2, written.write_qwen2, False),
    "Qwen3ForCausalLM": Family("qwen3", LLAMA, read.read_qwen3, written.write_qwen3, False),
    "Gemma2ForCausalLM": Family("gemma2", GEMMA, read.read_gemma2, written.write_gemma2, True),
    "Gemma3ForCausalLM": Family("gemma3_text", GEMMA, read.read_gemma3, written.write_gemma3, True),
    "GPT2LMHeadModel": Family("gpt2", GPT2, read.read_gpt2, written.write_gpt2, True),
}


def architecture_of(config: dict[str, Any], folder: Path) -> str:
    """The class that a configuration names, in "architectures" or by its "model_type".

    Raises:
      ValueError: it is none of `FAMILIES`.
    """
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if name is None:
        types = {family.model_type: key for key, family in FAMILIES.items()}
        name = types.get(config.get("model_type", ""), config.get("model_type"))
    if name not in FAMILIES:
        raise ValueError(
            f"{folder / CONFIG}: the architecture must be one of {', '.join(FAMILIES)}, got {name}"
        )
    return name


def read_settings(architecture: str, config: dict[str, Any], folder: Path) -> tuple[CausalLM, int]:
    """The settings and V.

    Raises:
      ValueError: an entry is missing, unknown, out of range, or asks for what is not supported;
        file and entry are named.
    """
    family, reader = FAMILIES[architecture], Config(folder, config)
    reader.absent(*UNSUPPORTED)
    tied = reader.boolean("tie_word_embeddings", family.tied)
    vocabulary = reader.integer("vocab_size", low=2)
    settings = CausalLM(tied=tied, **family.read(reader))
    reader.finish(UNUSED | TRAINING_ONLY)
    if found := settings.validate():
        raise ValueError(f"{folder / CONFIG}: {found[0]}")
    return resolved(settings), vocabulary


def config_of(settings: CausalLM, vocabulary: int) -> tuple[str, dict[str, Any]]:
    """The first class of transformers that has a model of these settings, and its `config.json`.

    Raises:
      ValueError: there is none; the fields in which the nearest class differs are named.

    Example:
      >>> config_of(CausalLM(width=8, heads=2, qkv_bias=True), 9)[0]
      'Qwen2ForCausalLM'
    """
    wanted, nearest = resolved(settings), ("", dict[str, Any]())
    for architecture, family in FAMILIES.items():
        config = {
            "architectures": [architecture],
            "model_type": family.model_type,
            "tie_word_embeddings": settings.tied,
            "vocab_size": vocabulary,
            **family.write(settings),
        }
        found, _ = read_settings(architecture, config, Path())
        if found == wanted:
            return architecture, config
        ours, theirs = dataclasses.asdict(wanted), dataclasses.asdict(found)
        differing = {k: theirs[k] for k in ours if ours[k] != theirs[k]}
        if not nearest[0] or len(differing) < len(nearest[1]):
            nearest = architecture, differing
    fields = ", ".join(f"{k}={v!r}" for k, v in nearest[1].items())
    raise ValueError(
        "`settings` are those of no class of transformers that is known here; the nearest, "
        f"{nearest[0]}, has {fields}"
    )


def resolved(s: CausalLM) -> CausalLM:
    """Equal settings with every width given, and without fields that change nothing.

    Example:
      >>> resolved(CausalLM(width=8, depth=2, heads=2, window=4, sliding=(False, False))).window
    """
    slides = [s.window_of(i) is not None for i in range(s.depth)]
    plain = CausalLM()
    learned, scale = s.positions == "learned", s.attention_scale
    return dataclasses.replace(
        s,
        kv_heads=s.kv,
        head_width=s.head,
        hidden=s.inner,
        window=s.window if any(slides) else None,
        sliding=tuple(slides) if any(slides) and not all(slides) else (),
        sliding_rope_base=s.sliding_rope_base if any(slides) and not learned else None,
        rope_base=plain.rope_base if learned else s.rope_base,
        rope_scaling=None if learned else s.rope_scaling,
        attention_scale=None if scale == s.head**-0.5 else scale,
    )
