"""Recurrent depth: a prelude reads the tokens, a core is iterated on a state, a coda reads it."""

from dynexit.core.data import Tokens
from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.types import Model
from dynexit.engine.deferred import deferred_readout
from dynexit.engine.steps import tied_step
from dynexit.layers.linen import step_names
from dynexit.models.recurrent.recurrent_decoder import RecurrentDecoder
from dynexit.models.recurrent.recurrent_network import Network, Part
from dynexit.models.recurrent.settings_transformers import RecurrentDepth


def recurrent_depth(settings: RecurrentDepth, inputs: Tokens, classes: int) -> Model:
    """Builds the model of `dx.models.RecurrentDepth`; `inputs` are `dx.Tokens`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    s = settings
    network = Network(
        vocabulary=inputs.vocabulary,
        width=s.width,
        heads=s.heads,
        prelude=s.prelude,
        core=s.core,
        coda=s.coda,
        mean_steps=s.mean_steps,
        padding=s.padding,
    )
    iterate, residual, head = (Part(network, name) for name in ("iterate", "residual", "head"))
    step = lambda params: deferred_readout(tied_step(iterate, residual, params), head, params)
    names, decoder = step_names(s.steps, 2), RecurrentDecoder(network, s.steps)
    return Model(network.init, network.embed, step, s.steps, names, decoder=decoder)
