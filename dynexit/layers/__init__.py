"""Layers that the models share, as Linen modules and functions."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.layers.attention import Heads as Heads
    from dynexit.layers.attention import SelfAttention as SelfAttention
    from dynexit.layers.attention import attend as attend
    from dynexit.layers.attention import attention_mask as attention_mask
    from dynexit.layers.attention import causal_mask as causal_mask
    from dynexit.layers.convolution import Convolution as Convolution
    from dynexit.layers.convolution import convolve as convolve
    from dynexit.layers.dense import Dense as Dense
    from dynexit.layers.grouped_attention import attend_grouped as attend_grouped
    from dynexit.layers.halting import HaltingHead as HaltingHead
    from dynexit.layers.heads import LogitsHead as LogitsHead
    from dynexit.layers.inputs import check_input as check_input
    from dynexit.layers.inputs import check_tokens as check_tokens
    from dynexit.layers.inputs import patches as patches
    from dynexit.layers.inputs import read_tokens as read_tokens
    from dynexit.layers.linen import Apply as Apply
    from dynexit.layers.linen import apply_linen as apply_linen
    from dynexit.layers.linen import initial as initial
    from dynexit.layers.linen import initial_stack as initial_stack
    from dynexit.layers.linen import merged as merged
    from dynexit.layers.mlp import MLP as MLP
    from dynexit.layers.mlp import swiglu_width as swiglu_width
    from dynexit.layers.norms import GroupNorm as GroupNorm
    from dynexit.layers.norms import LayerNorm as LayerNorm
    from dynexit.layers.norms import RMSNorm as RMSNorm
    from dynexit.layers.pooling import mean_over_places as mean_over_places
    from dynexit.layers.projection import project as project
    from dynexit.layers.rotary import rotary as rotary
    from dynexit.layers.rotary import rotate as rotate

__getattr__, __dir__ = attach(__name__)
