"""The losses of the exits of a language model, computed between its blocks."""

from typing import Any

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Bool, Float, Int, PyTree, Rows
from dynexit.core.stages import one_depth
from dynexit.core.types import Model, Step
from dynexit.engine import loops
from dynexit.engine.deferred import deferred_parts
from dynexit.objectives.chunked_cross_entropy import chunked_cross_entropy


def exit_losses(
    model: Model,
    params: PyTree,
    inputs: Rows,
    labels: Int[Array, "B L"],
    on: Bool[Array, "E"],
    step: Step | None = None,
    places: int | None = None,
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
      places: of each row in a chunk, see `chunked_cross_entropy`.

    Returns:
      `[E, B]` in nats, 0 for exits that are off. See `chunked_cross_entropy`.

    Raises:
      TypeError: a model without a decoder or with stages, or whose exits have no "hidden".
    """
    check_language_model(model)
    depth, whole = one_depth(model), model.steps(params) if step is None else step
    parts = deferred_parts(whole)
    apply, select = (parts[0] if parts else whole).apply, whole.select
    read = lambda h: model.decoder.logits(params, h)

    def loss(h: Array) -> Array:
        return chunked_cross_entropy(read, h[None], labels, places)[0].astype(jnp.float32)

    # without a checkpoint, every exit would keep a copy of the head's weights for the backward pass
    no_loss = lambda h: jnp.zeros(labels.shape[0], jnp.float32)
    switch = lambda on, h: loops.maybe(on, loss, no_loss, h)
    switched = jax.checkpoint(switch, prevent_cse=False)

    def body(state: PyTree, x: Any) -> tuple[PyTree, Array]:
        i, weights, on = x
        state, output = apply(weights, i, state)
        if not isinstance(output, dict) or "hidden" not in output:
            raise TypeError(
                "`model` must have exits with the entry 'hidden', such as dx.models.CausalLM"
            )
        return state, switched(on, output["hidden"])

    blocks = jnp.arange(depth, dtype=jnp.int32), jax.vmap(select)(jnp.arange(depth)), on
    # never unrolled: the gradients of the head would be in memory once for each exit
    return loops.scan(body, model.embed(params, inputs), blocks)[1]


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
