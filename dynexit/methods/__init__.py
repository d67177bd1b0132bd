"""Published systems, each a `Method` in one file."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.methods.exits.confidence_exits import confidence_exits as confidence_exits
    from dynexit.methods.exits.fixed_depth import fixed_depth as fixed_depth
    from dynexit.methods.exits.frozen_trunk import frozen_trunk as frozen_trunk
    from dynexit.methods.exits.settings import ConfidenceExits as ConfidenceExits
    from dynexit.methods.exits.settings import FixedDepth as FixedDepth
    from dynexit.methods.exits.settings import FrozenTrunk as FrozenTrunk
    from dynexit.methods.exits.settings import StochasticDepth as StochasticDepth
    from dynexit.methods.exits.stochastic_depth import stochastic_depth as stochastic_depth
    from dynexit.methods.halting.act import act as act
    from dynexit.methods.halting.pondernet import pondernet as pondernet
    from dynexit.methods.halting.settings import Act as Act
    from dynexit.methods.halting.settings import PonderNet as PonderNet
    from dynexit.methods.language.balcony import balcony as balcony
    from dynexit.methods.language.calm import calm as calm
    from dynexit.methods.language.calm_classifier import fit_calm_classifier as fit_calm_classifier
    from dynexit.methods.language.calm_criterion import calm_criterion as calm_criterion
    from dynexit.methods.language.d3 import d3_depths as d3_depths
    from dynexit.methods.language.d3 import d3_exits as d3_exits
    from dynexit.methods.language.layerskip import layerskip as layerskip
    from dynexit.methods.language.settings import Balcony as Balcony
    from dynexit.methods.language.settings import Calm as Calm
    from dynexit.methods.language.settings import LayerSkip as LayerSkip
    from dynexit.methods.language.settings import SortedExits as SortedExits
    from dynexit.methods.language.sorted_exits import sorted_exits as sorted_exits
    from dynexit.methods.language.text_risk import (
        risk_controlled_threshold as risk_controlled_threshold,
    )
    from dynexit.methods.recurrent.ctm import ctm as ctm
    from dynexit.methods.recurrent.deep_thinking import deep_thinking as deep_thinking
    from dynexit.methods.recurrent.equilibrium import equilibrium as equilibrium
    from dynexit.methods.recurrent.neural_ode import neural_ode as neural_ode
    from dynexit.methods.recurrent.raptor import raptor as raptor
    from dynexit.methods.recurrent.recurrent_depth import recurrent_depth as recurrent_depth
    from dynexit.methods.recurrent.segments import segments as segments
    from dynexit.methods.recurrent.settings import Ctm as Ctm
    from dynexit.methods.recurrent.settings import DeepThinking as DeepThinking
    from dynexit.methods.recurrent.settings import Equilibrium as Equilibrium
    from dynexit.methods.recurrent.settings import NeuralOde as NeuralOde
    from dynexit.methods.recurrent.settings import Raptor as Raptor
    from dynexit.methods.recurrent.settings import RecurrentDepth as RecurrentDepth
    from dynexit.methods.recurrent.settings import Segments as Segments

__getattr__, __dir__ = attach(__name__)
