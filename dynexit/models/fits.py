"""Sentences about inputs that do not fit a model; loads no JAX."""

from typing import Any


def positive(value: Any) -> bool:
    """Whether a value is a Python integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def misfit_shape(inputs: Any, *axes: str) -> list[str]:
    """A sentence where `inputs` is not a tuple of positive sizes with these axes.

    Args:
      inputs: shape of one example.
      axes: names of the axes; none for any number of at least one.

    Example:
      >>> misfit_shape((8, 8), "height", "width", "channels")
      ['inputs must be (height, width, channels), got (8, 8)']
    """
    shape = isinstance(inputs, tuple) and not hasattr(inputs, "vocabulary")
    if shape and inputs and all(map(positive, inputs)) and len(axes) in (0, len(inputs)):
        return []
    wanted = f"({', '.join(axes)})" if axes else "a shape such as (8, 8, 1)"
    return [f"inputs must be {wanted}, got {inputs!r}"]


def misfit_tokens(inputs: Any, fixed_length: bool = False) -> list[str]:
    """A sentence where `inputs` is not `dx.Tokens`.

    Args:
      inputs: what one example looks like.
      fixed_length: whether the model needs to know the length.

    Example:
      >>> misfit_tokens((8, 8, 1))
      ['inputs must be dx.Tokens(vocabulary, length), got (8, 8, 1)']
    """
    if not hasattr(inputs, "vocabulary") or not positive(inputs.vocabulary):
        return [f"inputs must be dx.Tokens(vocabulary, length), got {inputs!r}"]
    if fixed_length and not positive(inputs.length):
        return [f"inputs must have a length, got {inputs!r}"]
    return []


def misfit_padding(padding: int | None, vocabulary: int) -> list[str]:
    """A sentence where `padding` is not one of the tokens.

    Example:
      >>> misfit_padding(12, 12)
      ['padding must lie in 0..11, got 12']
    """
    if padding is None or 0 <= padding < vocabulary:
        return []
    return [f"padding must lie in 0..{vocabulary - 1}, got {padding}"]


def misfit_heads(width: int, heads: int, multiple: int = 1) -> list[str]:
    """A sentence where `width` is not a multiple of `multiple` times `heads`.

    Example:
      >>> misfit_heads(6, 2, 2)
      ['width must be a multiple of 2 x heads, got 6 and 2']
    """
    if width % (multiple * heads) == 0:
        return []
    product = "heads" if multiple == 1 else f"{multiple} x heads"
    return [f"width must be a multiple of {product}, got {width} and {heads}"]


def not_above(low: float, **values: float) -> list[str]:
    """A sentence for each value that is not above `low`.

    Example:
      >>> not_above(0, tolerance=0.0)
      ['tolerance must be above 0, got 0.0']
    """
    return [f"{n} must be above {low}, got {v}" for n, v in values.items() if not v > low]


def misfit_epsilon(epsilon: float) -> list[str]:
    """A sentence where `epsilon` does not lie strictly between 0 and 1.

    Example:
      >>> misfit_epsilon(1.0)
      ['epsilon must lie between 0 and 1, both excluded, got 1.0']
    """
    if 0 < epsilon < 1:
        return []
    return [f"epsilon must lie between 0 and 1, both excluded, got {epsilon}"]
