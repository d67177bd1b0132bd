"""The decoder-only transformer as a `Model`: whole sequences, an exit after every block."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.data import Tokens
from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import Array, PyTree, Rows
from dynexit.core.stacking import stack
from dynexit.core.types import Model, Step
from dynexit.engine.deferred import deferred_readout
from dynexit.engine.steps import stacked_step
from dynexit.layers.grouped_attention import attend_grouped
from dynexit.layers.inputs import check_tokens, read_tokens
from dynexit.layers.linen import block_names
from dynexit.models.language.block import initial_block, initial_norm, run_block
from dynexit.models.language.decoder import TransformerDecoder, read_logits
from dynexit.models.language.frequencies import frequencies
from dynexit.models.language.settings import CausalLM


def causal_lm(settings: CausalLM, inputs: Tokens, classes: int) -> Model:
    """Builds the model of `dx.models.CausalLM`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    network = _Network(settings, inputs.vocabulary)
    decoder = TransformerDecoder(settings, inputs.vocabulary)
    names = block_names(settings.depth)
    return Model(network.init, network.embed, network.steps, settings.depth, names, decoder=decoder)


@dataclasses.dataclass(frozen=True)
class _Network:
    """The functions of the model; equal settings give equal functions, so they compile once."""

    settings: CausalLM
    vocabulary: int

    def init(self, key: Array) -> PyTree:
        s, keys = self.settings, jax.random.split(key, self.settings.depth + 3)
        table = lambda key, rows: 0.02 * jax.random.normal(key, (rows, s.width))
        embed = {"tokens": table(keys[0], self.vocabulary)}
        if s.positions == "learned":
            embed["positions"] = table(keys[1], s.context)
        head = {"norm": initial_norm(s, s.width)}
        if not s.tied:
            head["logits"] = {"weight": table(keys[2], self.vocabulary)}
        blocks = stack([initial_block(s, k) for k in keys[3:]])
        return {"embed": embed, "blocks": blocks, "head": head}

    def embed(self, params: PyTree, inputs: Rows) -> Rows:
        tokens, real, others = read_tokens(inputs, None, ("segments",))
        check_tokens(tokens, "inputs")
        rows, length = jnp.shape(tokens)
        if length > self.settings.context:
            raise ValueError(
                f"`inputs` must have at most {self.settings.context} tokens, the context of the "
                f"model, got {length}"
            )
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length))
        state = {} if real is None else {"mask": real}
        if real is not None:  # the first real token is at position 0
            positions = jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)
        if "segments" in others:
            state["segments"] = jnp.asarray(others["segments"])
            positions = positions - jnp.take_along_axis(positions, _starts(state["segments"]), 1)
        h = TransformerDecoder(self.settings, self.vocabulary).embed(params, tokens, positions)
        return {"h": h, "positions": positions, **state}

    def steps(self, params: PyTree) -> Step:
        s = self.settings
        rates = np.stack([frequencies(s, i) for i in range(s.depth)])
        windows = [s.window_of(i) or np.iinfo(np.int32).max for i in range(s.depth)]
        constants = {"rates": jnp.asarray(rates), "window": jnp.asarray(windows, jnp.int32)}
        stacked = {"block": params["blocks"], "constants": constants}
        step = stacked_step(_Part(s, "block"), _Part(s, "output"), stacked)
        shared = {"embed": params["embed"], "head": params["head"]}
        return deferred_readout(step, _Part(s, "logits"), shared)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A function of a block and its state, equal for equal settings."""

    settings: CausalLM
    name: str

    def __call__(self, p: PyTree, state: Rows) -> Rows:
        return getattr(self, self.name)(p, state)

    def block(self, p: PyTree, state: Rows) -> Rows:
        s, constants = self.settings, p["constants"]
        mask = _attended(state, constants["window"])

        def mix(q: Array, k: Array, v: Array) -> tuple[Array, None]:
            k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
            return attend_grouped(q, k, v, mask, s.attention_scale, s.attention_cap), None

        rates, positions = constants["rates"], state["positions"]
        h, _ = run_block(s, p["block"], rates, state["h"], positions, mix)
        return {**state, "h": h}

    def output(self, p: PyTree, state: Rows) -> Rows:
        mask = {"mask": state["mask"]} if "mask" in state else {}
        return {"hidden": state["h"], **mask}

    def logits(self, shared: PyTree, state: Rows) -> Rows:
        return {"logits": read_logits(self.settings, shared, state["h"])}


def _attended(state: Rows, window: Array) -> Array:
    """Bool `[b, L, L]`: which places each place attends to."""
    place = jnp.arange(state["h"].shape[1], dtype=jnp.int32)
    distance = place[:, None] - place[None]
    mask = ((distance >= 0) & (distance < window))[None]
    if "mask" in state:
        mask = mask & state["mask"][:, None]
    if "segments" in state:
        mask = mask & (state["segments"][:, :, None] == state["segments"][:, None])
    return mask


def _starts(segments: Array) -> Array:
    """The place at which the segment of each place starts, int32 `[b, L]`."""
    place = jnp.arange(segments.shape[1], dtype=jnp.int32)
    new = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], 1
    )
    return jax.lax.cummax(jnp.where(new, place, 0), axis=1)
