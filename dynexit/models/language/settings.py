"""Constructor of the decoder-only transformer; no JAX is loaded before `build`."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from dynexit.core.data import Tokens
from dynexit.core.settings import MOST_BLOCKS, at_least, at_most
from dynexit.models.fits import misfit_tokens, not_above

if TYPE_CHECKING:
    from dynexit.core.types import Model


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are lowered for contexts longer than in the first training.

    Example:
      >>> RopeScaling("linear", factor=8.0).validate()
      []

    Source: linear, Chen et al. 2023, arXiv 2306.15595; llama3, Dubey et al. 2024, arXiv 2407.21783,
    and its released code.
    """

    kind: Literal["linear", "llama3"] = "linear"
    """linear divides all frequencies; llama3 those of long wavelengths, with a ramp between"""
    factor: float = 1.0
    """by which frequencies are divided"""
    low: float = 1.0
    """llama3: wavelengths above `context` / low are divided"""
    high: float = 4.0
    """llama3: wavelengths below `context` / high are kept"""
    context: int = 8192
    """llama3: positions of the first training"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = not_above(0, factor=self.factor) + at_least(self, 1, "context")
        if not self.low > 0:
            found.append(f"low must be above 0, got {self.low}")
        if self.kind == "llama3" and not self.high > self.low:
            found.append(f"high must be above low, got {self.high} and {self.low}")
        return found


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """A decoder-only transformer language model with an exit after every block.

    h <- h + out(attention(norm1 h)); h <- h + mlp(norm2 h). All exits read the state through one
    final norm and one output matrix. The default is the block of Llama; other fields make those
    of GPT-2, Mistral, Qwen 2 and 3 and Gemma 2 and 3 (`dx.models.language.from_hf`).

    Example:
      >>> import dynexit as dx
      >>> model = CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(50), 50)
      >>> model.names
      ('block00', 'block01')

    Source: Touvron et al. 2023, Llama 2, arXiv 2307.09288; the exits are those of LayerSkip,
    Elhoushi et al. 2024, arXiv 2404.16710.
    """

    width: int = 256
    """channels D"""
    depth: int = 8
    """blocks N, each followed by an exit"""
    heads: int = 8
    """query heads"""
    kv_heads: int | None = None
    """heads of keys and values, a divisor of `heads`; None for `heads`"""
    head_width: int | None = None
    """channels of a head, even; None for D / heads"""
    hidden: int | None = None
    """inner width of the MLP; None for 8/3 D rounded up to a multiple of 8"""
    context: int = 2048
    """positions at most"""
    norm: Literal["rms", "layer"] = "rms"
    """root mean square norm, or layer norm with biases"""
    norm_epsilon: float = 1e-5
    """added to the mean square, or to the variance"""
    norm_offset: bool = False
    """the scale of a norm is 1 + w"""
    post_norms: bool = False
    """norms after attention and MLP too, before the sums"""
    qk_norm: bool = False
    """a norm of each head's query and key"""
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    """of the MLP"""
    gated: bool = True
    """the MLP has a gate"""
    qkv_bias: bool = False
    """biases of queries, keys and values"""
    out_bias: bool = False
    """bias after attention"""
    mlp_bias: bool = False
    """biases of the MLP"""
    positions: Literal["rotary", "learned"] = "rotary"
    """rotated queries and keys, or learned vectors that are added to the embedding"""
    rope_base: float = 10_000.0
    """of the rotary frequencies"""
    rope_scaling: RopeScaling | None = None
    """of the rotary frequencies, outside of sliding blocks that have `sliding_rope_base`"""
    sliding_rope_base: float | None = None
    """of the rotary frequencies in blocks with a window; None for `rope_base`"""
    window: int | None = None
    """positions that a token attends to, itself included; None for all before it"""
    sliding: tuple[bool, ...] = ()
    """which of the N blocks have the window; empty for all"""
    attention_scale: float | None = None
    """of the scores; None for one over the root of the head's width"""
    attention_cap: float | None = None
    """scores become cap tanh(score / cap)"""
    logits_cap: float | None = None
    """logits become cap tanh(logit / cap)"""
    embed_scale: float = 1.0
    """factor of the embedding"""
    tied: bool = True
    """the output matrix is the embedding"""

    @property
    def kv(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def head(self) -> int:
        """Channels of a head."""
        return self.head_width or self.width // self.heads

    @property
    def inner(self) -> int:
        """Inner width of the MLP."""
        return self.hidden or -(-self.width // 3) * 8

    def window_of(self, block: int) -> int | None:
        """The window of one block, or None."""
        slides = self.sliding[block] if self.sliding else True
        return self.window if slides else None

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        optional = ("kv_heads", "head_width", "hidden", "window")
        given = [name for name in optional if getattr(self, name) is not None]
        found = at_least(self, 1, "width", "depth", "heads", "context", *given)
        found += at_most(self, MOST_BLOCKS, "depth")
        if found:
            return found
        if self.heads % self.kv:
            found.append(f"kv_heads must divide heads, got {self.kv} and {self.heads}")
        if self.head_width is None and self.width % self.heads:
            found.append(
                f"heads must divide width where head_width is None, got {self.heads} "
                f"and {self.width}"
            )
        if self.positions == "rotary" and self.head % 2:
            found.append(f"head_width must be even for rotary positions, got {self.head}")
        if self.sliding and len(self.sliding) != self.depth:
            found.append(
                f"sliding must have one entry for each of the {self.depth} blocks, "
                f"got {len(self.sliding)}"
            )
        if any(self.sliding) and self.window is None:
            found.append("window must be set where blocks are sliding, got None")
        caps = ("attention_scale", "attention_cap", "logits_cap", "sliding_rope_base")
        limits = {name: getattr(self, name) for name in caps if getattr(self, name) is not None}
        limits |= {"norm_epsilon": self.norm_epsilon, "rope_base": self.rope_base}
        return found + not_above(0, **limits, embed_scale=self.embed_scale)

    def fits(self, inputs: Any, classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        found = misfit_tokens(inputs)
        if not found and classes > inputs.vocabulary:
            found = [f"classes must be among the {inputs.vocabulary} tokens, got {classes}"]
        if not found and (inputs.length or 0) > self.context:
            found = [f"context must be at least the {inputs.length} tokens, got {self.context}"]
        return found

    def build(self, inputs: Tokens, classes: int) -> "Model":
        """The model.

        Args:
          inputs: `dx.Tokens`; any length up to `context`.
          classes: at most V: classes are tokens, and the logits are of all V tokens.

        Returns:
          A homogeneous `Model` whose `decoder` is a `dx.models.language.TransformerDecoder`.
          Inputs: integers `[B, L]`, or a dict of "tokens" and optionally "mask", bool `[B, L]`,
          False at padded places, and "segments", integers `[B, L]`: tokens attend within their
          segment. Positions count the tokens of a row or segment that are not padded. Outputs
          `{"hidden": [E, B, L, D], "logits": [E, B, L, V]}`, with padding also "mask"; the logits
          are a deferred readout. The compute type is that of the parameters.

        Raises:
          ValueError: a field out of range, or inputs that are no tokens; the field is named.
        """
        from dynexit.models.language.causal_lm import causal_lm

        return causal_lm(self, inputs, classes)
