"""Rotary frequencies of every block, with their scaling, in numpy."""

import numpy as np

from dynexit.core.shapes import Float, HostArray
from dynexit.models.language.settings import CausalLM, RopeScaling


def frequencies(settings: CausalLM, block: int) -> Float[HostArray, "_"]:
    """Angle per position of every pair of channels in one block, float32 `[head width / 2]`.

    Example:
      >>> [round(rate, 4) for rate in frequencies(CausalLM(width=8, heads=2), 0).tolist()]
      [1.0, 0.01]
    """
    half = settings.head // 2
    local = settings.window_of(block) is not None and settings.sliding_rope_base is not None
    base = settings.sliding_rope_base if local else settings.rope_base
    exponents = np.arange(half, dtype=np.float32) / np.float32(half)
    rates = (1 / np.float32(base) ** exponents).astype(np.float32)
    scaling = None if local else settings.rope_scaling
    return rates if scaling is None else scaled(rates, scaling)


def scaled(rates: Float[HostArray, "_"], scaling: RopeScaling) -> Float[HostArray, "_"]:
    """Frequencies for a longer context.

    linear: f / factor. llama3: f / factor for wavelengths w = 2 pi / f above context / low, f
    below context / high, and between them (1 - r) f / factor + r f with
    r = (context / w - low) / (high - low).

    Example:
      >>> scaled(np.array([1.0], np.float32), RopeScaling("linear", 4.0)).tolist()
      [0.25]
    """
    if scaling.kind == "linear":
        return (rates / scaling.factor).astype(np.float32)
    turns = scaling.context * rates / (2 * np.pi)  # context / wavelength
    ramp = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return ((1 - ramp) * rates / scaling.factor + ramp * rates).astype(np.float32)
