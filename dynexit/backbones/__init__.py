"""Floor 2: networks as pure functions of plain dicts, with an exit after every block. flax lives here and nowhere else."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.backbones.adapters import Adapted, from_linen, from_nnx
    from dynexit.backbones.block_recurrent import block_recurrent
    from dynexit.backbones.ctm import ctm
    from dynexit.backbones.deep_thinking import deep_thinking
    from dynexit.backbones.equilibrium import equilibrium
    from dynexit.backbones.features import features
    from dynexit.backbones.gru import gru_ponder
    from dynexit.backbones.mlp import mlp
    from dynexit.backbones.neural_ode import neural_ode
    from dynexit.backbones.pararnn import para_gru
    from dynexit.backbones.recurrent_depth import recurrent_depth
    from dynexit.backbones.recursive import recursive
    from dynexit.backbones.resnet import resnet
    from dynexit.backbones.rnn import rnn
    from dynexit.backbones.universal_transformer import universal_transformer
    from dynexit.backbones.vit import vit

__all__ = [
    "Adapted",
    "block_recurrent",
    "ctm",
    "deep_thinking",
    "equilibrium",
    "features",
    "from_linen",
    "from_nnx",
    "gru_ponder",
    "mlp",
    "neural_ode",
    "para_gru",
    "recurrent_depth",
    "recursive",
    "resnet",
    "rnn",
    "universal_transformer",
    "vit",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Adapted": "adapters",
        "block_recurrent": "block_recurrent",
        "ctm": "ctm",
        "deep_thinking": "deep_thinking",
        "equilibrium": "equilibrium",
        "features": "features",
        "from_linen": "adapters",
        "from_nnx": "adapters",
        "gru_ponder": "gru",
        "mlp": "mlp",
        "neural_ode": "neural_ode",
        "para_gru": "pararnn",
        "recurrent_depth": "recurrent_depth",
        "recursive": "recursive",
        "resnet": "resnet",
        "rnn": "rnn",
        "universal_transformer": "universal_transformer",
        "vit": "vit",
    },
)
