"""Deep-thinking networks: one convolutional block again and again, which may see the input anew
each time (recall).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array, Model
from dynexit.engine.steps import tied_step
from dynexit.layers.convolution import convolve
from dynexit.layers.parts import Apply, Norm, check_input, initial


class Convolution(nn.Module):
    """Width-3 convolution over all places, zeros beyond the edge; no bias, as in the paper's
    networks.
    """

    features: int

    @nn.compact
    def __call__(self, x, open=None):
        """Zero also where `open`, bool `[b, ...]`, is false."""
        shape = (*(3,) * (x.ndim - 2), x.shape[-1], self.features)
        y = convolve(x, self.param("kernel", nn.initializers.he_normal(), shape).astype(x.dtype))
        return y if open is None else jnp.where(open[..., None], y, 0)


def open_places(x: Array, walls: bool) -> Array | None:
    """Where the input is not zero in all channels, bool `[b, ...]`; None where there are no walls."""
    return (x != 0).any(-1) if walls else None


class Project(nn.Module):
    """The input as a first state: convolution, ReLU."""

    width: int
    walls: bool

    @nn.compact
    def __call__(self, x):
        return nn.relu(Convolution(self.width, name="conv")(x, open_places(x, self.walls)))


class Think(nn.Module):
    """One iteration: the input beside the state, then two residual blocks; `{"input": [b, ...],
    "h": [b, ..., D]}`.
    """

    width: int
    recall: bool
    blocks: int
    norm: bool
    walls: bool

    @nn.compact
    def __call__(self, state):
        h, x = state["h"], state["input"]
        open = open_places(x, self.walls)
        if self.recall:
            h = Convolution(self.width, name="recall")(jnp.concatenate([h, x], axis=-1), open)
            h = nn.relu(h) if h.ndim == 3 else h
        for k in range(self.blocks):
            inner = nn.relu(Convolution(self.width, name=f"in{k}")(h, open))
            h = nn.relu(h + Convolution(self.width, name=f"out{k}")(inner, open))
        h = Norm(name="norm")(h) if self.norm else h
        return {"input": x, "h": h if open is None else jnp.where(open[..., None], h, 0)}


class Head(nn.Module):
    """Three convolutions down to the classes of every place."""

    widths: tuple[int, int]
    classes: int
    walls: bool

    @nn.compact
    def __call__(self, state):
        h, open = state["h"], open_places(state["input"], self.walls)
        for k, width in enumerate(self.widths):
            h = nn.relu(Convolution(width, name=f"conv{k}")(h, open))
        return Convolution(self.classes, name="logits")(h)


def deep_thinking(
    places: int,
    channels: int,
    classes: int,
    *,
    width: int,
    steps: int,
    recall: bool = True,
    blocks: int = 2,
    norm: bool = True,
    every: int = 1,
    walls: bool = False,
) -> Model:
    """A weight-tied convolutional network that answers at every place and may be run for longer
    than it was trained.

    h_0 = relu(conv(x)); h_{i+1} = blocks(conv([h_i, x])); the same head reads every iteration.

    Args:
      places: axes of places, 1 for strings and 2 for images.
      channels: of the input.
      classes: C, at every place.
      width: D, channels of the state.
      steps: N, the most iterations.
      recall: whether every iteration sees the input again; without it long runs forget the
        question.
      blocks: residual blocks of two convolutions an iteration.
      every: iterations from one exit to the next, a divisor of `steps`; the head costs about a
        third of an iteration on strings, a tenth on images.
      norm: whether every iteration ends with a norm over the channels of each place, which keeps
        long runs bounded.
      walls: whether places whose input is 0 in all channels hold no state and pass nothing on. The
        edge of an image is then a wall like any other; without it a small image tells every place
        how far from the edge it is, and larger ones do not.

    Returns:
      A weight-tied `Model`: inputs `[B, L, channels]` or `[B, H, W, channels]` of any size, outputs
      logits `[E, B, L, C]` or `[E, B, H, W, C]`, E = steps / every. State: "input", which no step
      changes, and "h".

    Raises:
      ValueError, TypeError: a number below 1, `places` neither 1 nor 2, `every` no divisor of
        `steps`.

    Example:
      >>> model = deep_thinking(1, 1, 2, width=8, steps=3)
      >>> params = model.init(jax.random.key(0))
      >>> model.embed(params, jnp.zeros((4, 16, 1)))["h"].shape
      (4, 16, 8)

    Source: Bansal et al. 2022, arXiv 2202.05826, "DT-recall", with its head (mazes: width / 4,
      which is 32 there, and 8; strings:
    width, width / 2) and activations. Deviations: the norm is ours, and the widths, made for two
    cores.
    """
    for name, value in dict(
        channels=channels, classes=classes, width=width, steps=steps, blocks=blocks, every=every
    ).items():
        positive_integer(value, name)
    if steps % every:
        raise ValueError(f"`every` must divide the {steps} iterations of `steps`, got {every}")
    if places not in (1, 2):
        raise ValueError(f"`places` must be 1 (strings) or 2 (images), got {places}")
    think, project = (
        Apply(Think(width, recall, blocks, norm, walls), "block"),
        Project(width, walls),
    )
    widths = (width, max(1, width // 2)) if places == 1 else (max(8, width // 4), 8)
    head = Apply(Head(widths, classes, walls), "head")
    like = (1,) + (8,) * places

    def init(key):
        keys = jax.random.split(key, 3)
        x, h = jnp.zeros((*like, channels)), jnp.zeros((*like, width))
        state = {"input": x, "h": h}
        return {
            "embed": initial(project, keys[0], x),
            "block": initial(think.module, keys[1], state),
            "head": initial(head.module, keys[2], state),
        }

    def embed(params, x):
        check_input(
            x,
            (*jnp.shape(x)[1:-1], channels)[-places - 1 :],
            "strings" if places == 1 else "images",
        )
        return {"input": x, "h": project.apply({"params": params["embed"]}, x)}

    names = tuple(f"step{i:03d}" for i in range(steps))
    return Model(init, embed, lambda params: tied_step(think, head, params, every), steps, names)
