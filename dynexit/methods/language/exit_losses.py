"""The losses of the exits of a language model, computed between its blocks."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.decoder import Decoder
from dynexit.core.shapes import Array, Bool, Float, Int, PyTree, Rows
from dynexit.core.stages import one_depth
from dynexit.core.types import Model, Step
from dynexit.engine import loops
from dynexit.engine.deferred import deferred_parts
from dynexit.engine.run import run_all
from dynexit.objectives.chunked_cross_entropy import chunked_cross_entropy


def exit_losses(
    model: Model,
    params: PyTree,
    inputs: Rows,
    labels: Int[Array, "B L"],
    on: Bool[Array, "E"],
    step: Step | None = None,
) -> Float[Array, "E B"]:
    """Cross-entropies of the exits that are on, without the logits of any exit as a whole.

    The loss of an exit is computed from the state after its block, before the next block runs: no
    hidden states are kept for it. An exit that is off costs nothing.

    Args:
      model: with a decoder, and exits with "hidden", such as `dx.models.CausalLM`.
      params: its parameters.
      inputs: leaves `[B, ...]`.
      labels: `[B, L]`; -1 at ignored places.
      on: bool `[E]`.
      step: the model's, perhaps transformed; None for `model.steps(params)`.

    Returns:
      `[E, B]` in nats, 0 for exits that are off. See `chunked_cross_entropy`.

    Raises:
      TypeError: a model without a decoder or with stages, or whose exits have no "hidden".
    """
    check_language_model(model)
    step = model.steps(params) if step is None else step
    parts = deferred_parts(step)
    step = parts[0] if parts else step
    read = Partial(_LossOfExit(model.decoder), step.apply, params, labels)
    losses = Step(Partial(_with_switch, step.select, on), read, depth=step.depth)
    return run_all(losses, model.embed(params, inputs), one_depth(model))


def is_language_model(model: Model) -> bool:
    """Whether `exit_losses` takes the model."""
    return model.decoder is not None and isinstance(model.depth, int)


def check_language_model(model: Model) -> None:
    """Refuses a model that `exit_losses` does not take.

    Raises:
      TypeError: a model without a decoder, or with stages.
    """
    if not is_language_model(model):
        raise TypeError(
            "`model` must have a decoder and blocks of one shape, such as dx.models.CausalLM, got "
            f"decoder {model.decoder!r} and depth {model.depth}"
        )


def _with_switch(select: Any, on: Array, i: Array) -> tuple[PyTree, Array]:
    return select(i), on[i]


@dataclasses.dataclass(frozen=True)
class _LossOfExit:
    decoder: Decoder

    def __call__(
        self, apply: Any, params: PyTree, labels: Array, selected: Any, i: Any, state: PyTree
    ) -> tuple[PyTree, Array]:
        weights, on = selected
        state, output = apply(weights, i, state)
        if not isinstance(output, dict) or "hidden" not in output:
            raise TypeError(
                "`model` must have exits with the entry 'hidden', such as dx.models.CausalLM"
            )
        read = lambda h: self.decoder.logits(params, h)
        run = lambda h: chunked_cross_entropy(read, h[None], labels)[0].astype(jnp.float32)
        off = lambda h: jnp.zeros(labels.shape[0], jnp.float32)
        return state, loops.maybe(on, run, off, output["hidden"])
