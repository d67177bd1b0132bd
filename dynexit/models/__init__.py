"""Networks as pure functions of plain dicts, with an exit after every block."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.models.adapters import Adapted as Adapted
    from dynexit.models.adapters import from_linen as from_linen
    from dynexit.models.adapters import from_nnx as from_nnx
    from dynexit.models.distilled.block_recurrent import block_recurrent as block_recurrent
    from dynexit.models.features import features as features
    from dynexit.models.implicit.equilibrium import equilibrium as equilibrium
    from dynexit.models.implicit.neural_ode import neural_ode as neural_ode
    from dynexit.models.mlp import mlp as mlp
    from dynexit.models.recurrent.ctm import ctm as ctm
    from dynexit.models.recurrent.deep_thinking import deep_thinking as deep_thinking
    from dynexit.models.recurrent.gru import gru_ponder as gru_ponder
    from dynexit.models.recurrent.pararnn import para_gru as para_gru
    from dynexit.models.recurrent.recurrent_depth import recurrent_depth as recurrent_depth
    from dynexit.models.recurrent.recursive import recursive as recursive
    from dynexit.models.recurrent.rnn import rnn as rnn
    from dynexit.models.recurrent.universal_transformer import (
        universal_transformer as universal_transformer,
    )
    from dynexit.models.vision.resnet import resnet as resnet
    from dynexit.models.vision.settings import Vit as Vit

__getattr__, __dir__ = attach(__name__)
