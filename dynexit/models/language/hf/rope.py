"""Rotary frequencies in `config.json`, in the forms of transformers 4 and 5."""

from typing import Any

from dynexit.models.hf_config import Config
from dynexit.models.language.settings import CausalLM, RopeScaling

KINDS = ("default", "linear", "llama3")


def read_rope(config: Config) -> dict[str, Any]:
    """`rope_base` and `rope_scaling` of the settings: from `rope_parameters`, or from `rope_theta`
    and `rope_scaling`.
    """
    context = config.integer("max_position_embeddings")
    outer = config.number("rope_theta", 10_000.0)
    config.only(partial_rotary_factor=1.0)
    new, old = config.part("rope_parameters"), config.part("rope_scaling")
    base, scaling = read_part(old or new, outer, context)
    return {"rope_base": base, "rope_scaling": scaling}


def read_part(rope: Config, base: float, context: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling of one object of parameters.

    Args:
      rope: its reader.
      base: where it has no `rope_theta`.
      context: of the model, where it has no `original_max_position_embeddings`.

    Example:
      >>> read_part(Config("m", {"type": "linear", "factor": 4}), 1e4, 64)[1].factor
      4.0
    """
    base = rope.number("rope_theta", base)
    rope.only(partial_rotary_factor=1.0)
    old = rope.choice("type", KINDS, "default")
    kind, original = rope.choice("rope_type", KINDS, old), "original_max_position_embeddings"
    scaling = None
    if kind == "linear":
        rope.value(original, None)
        scaling = RopeScaling("linear", rope.number("factor"))
    elif kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        original = rope.integer(original, context)
        scaling = RopeScaling("llama3", rope.number("factor"), low, high, original)
    rope.finish(())
    return base, scaling


def written_rope(s: CausalLM) -> dict[str, Any]:
    """`rope_parameters` for the settings; `read_rope` reads it."""
    scaling = s.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": s.rope_base}
    found = {"rope_type": scaling.kind, "rope_theta": s.rope_base, "factor": scaling.factor}
    if scaling.kind == "llama3":
        found |= {
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.context,
        }
    return found
