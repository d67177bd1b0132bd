"""What a model does with its inputs first: checks, patches of images, tokens and their padding."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dynexit.core.shapes import AnyArray, Array, Bool, PyTree, Shaped


def check_input(inputs: Any, shape: Sequence[int | None], what: str) -> None:
    """Refuses inputs of another shape or without a floating point type.

    Args:
      inputs: the inputs of a model.
      shape: of one example; None for an axis of any size.
      what: "images", for example.

    Raises:
      ValueError: the shape is not `[B, *shape]`.
      TypeError: the inputs are not floating point.

    Example:
      >>> check_input(jnp.ones((2, 8, 8, 1)), (8, 8, 1), "images")
    """
    came = jnp.shape(inputs)
    if len(came) != len(shape) + 1 or any(
        wanted not in (None, size) for wanted, size in zip(shape, came[1:], strict=True)
    ):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"`inputs` must be {what} of shape [B, {wanted}], got {list(came)}")
    if not jnp.issubdtype(jnp.result_type(inputs), jnp.floating):
        raise TypeError(
            f"`inputs` must be floating point, got {jnp.result_type(inputs)}; "
            "scale them first (Experiment.prepare)"
        )


def check_tokens(tokens: Any, name: str, length: int | None = None) -> None:
    """Refuses what is not integers `[B, L]`.

    Args:
      tokens: the tokens.
      name: what the message calls them.
      length: L, or None for any.

    Raises:
      ValueError: another shape or type.

    Example:
      >>> check_tokens(jnp.zeros((2, 5), jnp.int32), "inputs")
    """
    shape, dtype = jnp.shape(tokens), jnp.result_type(tokens)
    fits = len(shape) == 2 and length in (None, shape[1])
    if not fits or not jnp.issubdtype(dtype, jnp.integer):
        wanted = "L" if length is None else length
        raise ValueError(f"`{name}` must be integers [B, {wanted}], got {dtype}{list(shape)}")


def read_tokens(
    inputs: PyTree, padding: int | None = None, others: Sequence[str] = ()
) -> tuple[
    Shaped[AnyArray, "B ..."], Bool[Array, "B L"] | None, dict[str, Shaped[AnyArray, "..."]]
]:
    """Tokens, which of them are real, and what else was given.

    Args:
      inputs: tokens `[B, L, ...]`; or a dict with "tokens" and, each optional, "mask", bool
        `[B, L]`, False at padded places, and the entries `others`.
      padding: the token of padded places, used where no mask is given; None for none.
      others: further keys.

    Returns:
      The tokens, the mask (None where nothing is padded), and a dict of the others that came.

    Raises:
      ValueError: a dict without "tokens" or with another key, a mask of another shape.
      TypeError: a mask that is not bool.

    Example:
      >>> tokens, real, _ = read_tokens(jnp.array([[3, 1, 0]]), padding=0)
      >>> real.tolist()
      [[True, True, False]]
    """
    if not isinstance(inputs, dict):
        inputs = {"tokens": inputs}
    known = {"tokens", "mask", *others}
    if "tokens" not in inputs or not set(inputs) <= known:
        optional = ", ".join(map(repr, sorted(known - {"tokens"})))
        raise ValueError(
            f"`inputs` must be tokens or a dict with 'tokens' and optionally {optional}, "
            f"got the keys {sorted(inputs)}"
        )
    tokens, real = inputs["tokens"], inputs.get("mask")
    if real is None and padding is not None and jnp.ndim(tokens) == 2:
        real = tokens != padding
    if real is not None:
        if jnp.shape(real) != jnp.shape(tokens)[:2]:
            raise ValueError(
                f'`inputs["mask"]` must have shape {list(jnp.shape(tokens)[:2])}, '
                f"got {list(jnp.shape(real))}"
            )
        if jnp.result_type(real) != jnp.bool_:
            raise TypeError(f'`inputs["mask"]` must be bool, got {jnp.result_type(real)}')
        real = jnp.asarray(real)
    rest = {name: inputs[name] for name in others if inputs.get(name) is not None}
    return tokens, real, rest


def patches(
    images: Shaped[AnyArray, "b H W C"], patch: int, stride: int
) -> Shaped[AnyArray, "b rows columns _"]:
    """Square patches of images, cut every `stride` pixels.

    Args:
      images: `[b, H, W, C]`; patches must end at the edges.
      patch: side P in pixels.
      stride: pixels from one patch to the next.

    Returns:
      `[b, rows, columns, P * P * C]`.

    Example:
      >>> patches(jnp.arange(16.0).reshape(1, 4, 4, 1), 2, 2)[0, 0, 1].tolist()
      [2.0, 3.0, 6.0, 7.0]
    """
    starts = lambda size: np.arange(0, size - patch + 1, stride)[:, None] + np.arange(patch)
    rows, columns = starts(images.shape[1]), starts(images.shape[2])  # [patches, P]
    cut = images[:, rows[:, None, :, None], columns[None, :, None, :]]
    return cut.reshape(images.shape[0], len(rows), len(columns), -1)
