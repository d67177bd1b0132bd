"""Deep thinking: one convolutional block, iterated, which may read the input at every iteration."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Bool, Float, PyTree, Rows, Shaped
from dynexit.core.types import Model
from dynexit.engine.steps import tied_step
from dynexit.layers.convolution import Convolution
from dynexit.layers.inputs import check_input, check_tokens
from dynexit.layers.linen import Apply, initial, step_names
from dynexit.layers.norms import LayerNorm
from dynexit.models.recurrent.settings_reasoners import DeepThinking

convolution = functools.partial(Convolution, in_loop=True, kernel_init=nn.initializers.he_normal())


def open_places(x: Float[AnyArray, "b *places C"], walls: bool) -> Bool[Array, "b *places"] | None:
    """Bool `[b, ...]`, True where the input is not zero in all channels; None without walls."""
    return (x != 0).any(-1) if walls else None


class Project(nn.Module):
    """The first state of an input: relu(conv(x))."""

    width: int
    walls: bool

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b *places C"]) -> Float[Array, "b *places D"]:
        return nn.relu(convolution(self.width, name="conv")(x, open_places(x, self.walls)))


class Think(nn.Module):
    """One iteration on `{"input": [b, ...], "h": [b, ..., D]}`: recall, then residual blocks."""

    width: int
    recall: bool
    blocks: int
    norm: bool
    walls: bool

    @nn.compact
    def __call__(self, state: Rows) -> Rows:
        h, x = state["h"], state["input"]
        open = open_places(x, self.walls)
        if self.recall:
            h = convolution(self.width, name="recall")(jnp.concatenate([h, x], axis=-1), open)
            h = nn.relu(h) if h.ndim == 3 else h
        for k in range(self.blocks):
            inner = nn.relu(convolution(self.width, name=f"in{k}")(h, open))
            h = nn.relu(h + convolution(self.width, name=f"out{k}")(inner, open))
        h = LayerNorm(name="norm")(h) if self.norm else h
        return {"input": x, "h": h if open is None else jnp.where(open[..., None], h, 0)}


class Head(nn.Module):
    """Three convolutions down to the classes of every place."""

    widths: tuple[int, int]
    classes: int
    walls: bool

    @nn.compact
    def __call__(self, state: Rows) -> Float[Array, "B ... C"]:
        h, open = state["h"], open_places(state["input"], self.walls)
        for k, width in enumerate(self.widths):
            h = nn.relu(convolution(width, name=f"conv{k}")(h, open))
        return convolution(self.classes, name="logits")(h)


def deep_thinking(settings: DeepThinking, inputs: Any, classes: int) -> Model:
    """Builds the model of `dx.models.DeepThinking`; `inputs` are a shape or `dx.Tokens`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    s, width = settings, settings.width
    tokens = hasattr(inputs, "vocabulary")
    images = not tokens and len(inputs) == 3
    channels = inputs.vocabulary if tokens else inputs[-1]
    project = Apply(Project(width, s.walls), "embed")
    think = Apply(Think(width, s.recall, s.blocks, s.norm, s.walls), "block")
    widths = (max(8, width // 4), 8) if images else (width, max(1, width // 2))
    head = Apply(Head(widths, classes, s.walls), "head")

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        places = (1, 8, 8) if images else (1, 8)
        x = jnp.zeros((*places, channels))
        state = {"input": x, "h": jnp.zeros((*places, width))}
        return {
            "embed": initial(project.module, keys[0], x),
            "block": initial(think.module, keys[1], state),
            "head": initial(head.module, keys[2], state),
        }

    def embed(params: PyTree, x: Shaped[AnyArray, "B ..."]) -> PyTree:
        if tokens and jnp.issubdtype(jnp.result_type(x), jnp.integer):
            check_tokens(x, "inputs")
            x = jax.nn.one_hot(x, channels, dtype=params["embed"]["conv"]["kernel"].dtype)
        sizes = (None, None) if images else (None,)
        check_input(x, (*sizes, channels), "images" if images else "strings")
        return {"input": x, "h": project(params, x)}

    steps = lambda params: tied_step(think, head, params, s.every)
    return Model(init, embed, steps, s.steps, step_names(s.steps))
