"""Networks as pure functions of plain dicts, with an exit after every block.

A constructor such as `Vit` is a frozen dataclass of settings; `build(inputs, classes)` makes the
`Model`.
"""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.models import language as language
    from dynexit.models import vision as vision
    from dynexit.models.distilled.settings import BlockRecurrent as BlockRecurrent
    from dynexit.models.exit_heads import ExitHeads as ExitHeads
    from dynexit.models.features import features as features
    from dynexit.models.implicit.settings import Equilibrium as Equilibrium
    from dynexit.models.implicit.settings import NeuralOde as NeuralOde
    from dynexit.models.language.balcony_settings import Balcony as Balcony
    from dynexit.models.language.encoder_settings import BertEncoder as BertEncoder
    from dynexit.models.language.encoder_settings import PretrainedBert as PretrainedBert
    from dynexit.models.language.settings import CausalLM as CausalLM
    from dynexit.models.language.settings import RopeScaling as RopeScaling
    from dynexit.models.recurrent.settings_cells import Gru as Gru
    from dynexit.models.recurrent.settings_cells import ParaGru as ParaGru
    from dynexit.models.recurrent.settings_cells import Rnn as Rnn
    from dynexit.models.recurrent.settings_reasoners import Ctm as Ctm
    from dynexit.models.recurrent.settings_reasoners import DeepThinking as DeepThinking
    from dynexit.models.recurrent.settings_reasoners import Recursive as Recursive
    from dynexit.models.recurrent.settings_transformers import RecurrentDepth as RecurrentDepth
    from dynexit.models.recurrent.settings_transformers import (
        UniversalTransformer as UniversalTransformer,
    )
    from dynexit.models.settings import Mlp as Mlp
    from dynexit.models.vision.encoder_settings import PretrainedVit as PretrainedVit
    from dynexit.models.vision.encoder_settings import VitEncoder as VitEncoder
    from dynexit.models.vision.settings import Resnet as Resnet
    from dynexit.models.vision.settings import Vit as Vit

__getattr__, __dir__ = attach(__name__)
