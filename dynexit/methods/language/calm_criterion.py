"""CALM's exit rule: a measure of confidence against a threshold that falls over the text."""

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from dynexit.core.shapes import Array, Float, PyTree, Rows, Size
from dynexit.core.types import Criterion
from dynexit.criteria import scores
from dynexit.criteria.combinators import Number
from dynexit.criteria.deciding import above, above_after_first
from dynexit.criteria.reading import (
    PerExit,
    exits_of,
    leaf,
    lowest,
    read_key,
    read_logits,
    threshold_leaf,
)

Measure: TypeAlias = Literal["margin", "saturation", "classifier"]
Decay: TypeAlias = Literal["scaled", "clipped"]
MEASURES: tuple[Measure, ...] = ("margin", "saturation", "classifier")
DECAYS: tuple[Decay, ...] = ("scaled", "clipped")


def calm_criterion(
    threshold: PerExit,
    measure: Measure = "margin",
    tau: Number = 4.0,
    decay: Decay = "scaled",
    classifier: PyTree = None,
) -> Criterion:
    """Exits where c > lambda_t, a confidence above a threshold that falls over the text.

    With s = exp(-tau t), and t in 0..1 the place of the token in the text:

      scaled: lambda_t = lambda (0.9 + 0.1 s); the score is c / (0.9 + 0.1 s).
      clipped: lambda_t = clip(0.9 lambda + 0.1 s, 0, 1); the score is (c - 0.1 s) / 0.9.

    The decision compares the score with lambda, so stored scores serve every lambda, and another
    lambda or tau compiles nothing. For c and lambda in 0..1 the clip changes no decision.

    The confidence c of a token is

      margin: p_(1) - p_(2) of softmax(z_i).
      saturation: cos(h_i, h_{i-1}); no exit at the first exit.
      classifier: sigmoid(w . h_i / rms(h_i) + b), see `fit_calm_classifier`.

    Args:
      threshold: lambda, scalar or `[E-1]`; infinite for full depth. A score may exceed 1, so
        lambda = 1 may exit early late in the text.
      measure: one of the three.
      tau: rate, at least 0; 0 for a threshold that does not fall with "scaled".
      decay: "scaled", the released code's, or "clipped", the paper's.
      classifier: `{"weight": [D], "bias": []}`, for "classifier" alone.

    Returns:
      `Criterion`, for `dx.decoding.Exits`, where t is the output's "time", and for runs over whole
      windows, where place k of L has t = k / L and a row exits once every place would.

    Raises:
      TypeError: `classifier` is missing, or given for another measure.
      ValueError: an argument out of range.

    Example:
      >>> import dynexit as dx
      >>> logits = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]], [[9.0, 0.0]]])  # [E=3, B=1, V=2]
      >>> for t in (0.0, 1.0):
      ...     outputs = {"logits": logits, "time": jnp.full((3, 1), t)}
      ...     print(dx.replay(calm_criterion(0.95), outputs).exit.tolist())
      [2]
      [1]

    Source: Schuster et al. 2022, CALM, arXiv 2207.07061, sections 3.3 and 3.4, and t5x
      `contrib/calm`. Deviations: comparisons are strict; the classifier reads a normalised state.
    """
    if measure not in MEASURES:
        raise ValueError(f"`measure` must be one of {', '.join(MEASURES)}, got {measure!r}")
    if decay not in DECAYS:
        raise ValueError(f"`decay` must be one of {', '.join(DECAYS)}, got {decay!r}")
    if (classifier is not None) != (measure == "classifier"):
        raise TypeError(
            "`classifier` must be given for `measure` 'classifier' and for no other, got "
            f"{measure!r} {'without one' if classifier is None else 'with one'}"
        )
    threshold, rate = threshold_leaf(threshold, high=10 / 9), leaf(tau, "tau", "[]")
    if not isinstance(tau, Tracer) and not (np.ndim(tau) == 0 and 0 <= float(tau) < np.inf):
        raise ValueError(f"`tau` must be a finite number of at least 0, got {tau}")
    score = Partial(_Score(measure, decay), rate, classifier)
    exits = exits_of(threshold)
    if measure == "saturation":
        return Criterion(score, above_after_first(threshold), _zero_states, exits=exits)
    return Criterion(score, above(threshold), exits=exits)


@dataclasses.dataclass(frozen=True)
class _Score:
    measure: Measure
    decay: Decay

    def __call__(
        self, tau: Array, classifier: PyTree, i: Array, output: PyTree, memory: PyTree
    ) -> tuple[Array, PyTree]:
        if self.measure == "margin":
            confidence = scores.margin(read_logits(output, None))
        else:
            hidden = read_key(output, "hidden", None).astype(jnp.float32)
            if self.measure == "saturation":
                confidence, memory = cosine(hidden, memory), hidden
            else:
                confidence = jax.nn.sigmoid(classifier_logit(classifier, hidden))
        faded = 0.1 * jnp.exp(-tau * _time(output, confidence))
        if self.decay == "scaled":
            score = confidence / (0.9 + faded)
        else:
            score = (confidence - faded) / 0.9
        return lowest(score, output), memory


def classifier_logit(classifier: PyTree, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
    """w . h / rms(h) + b, the log odds that the exit agrees with full depth.

    Example:
      >>> classifier = {"weight": jnp.array([1.0, 0.0]), "bias": jnp.float32(0.5)}
      >>> float(classifier_logit(classifier, jnp.array([3.0, 3.0])))
      1.5
    """
    size = jnp.sqrt((hidden * hidden).mean(axis=-1, keepdims=True) + 1e-12)
    return (hidden / size) @ classifier["weight"] + classifier["bias"]


def cosine(a: Float[Array, "*b D"], b: Float[Array, "*b D"]) -> Float[Array, "*b"]:
    """cos(a, b) over the last axis; 0 where a vector is zero."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / jnp.where(norms == 0, 1.0, norms)


def _time(output: Rows, confidence: Array) -> Array:
    """The place in the text, in 0..1, of every confidence `[b]` or `[b, L]`."""
    if isinstance(output, dict) and "time" in output:
        time = output["time"]
        return time.reshape(time.shape + (1,) * (confidence.ndim - time.ndim))
    if confidence.ndim < 2:
        raise ValueError(
            "`criterion` reads output['time'] `[b]` where rows are tokens, and the output has none"
        )
    places = jnp.arange(confidence.shape[1], dtype=jnp.float32) / confidence.shape[1]
    return jnp.broadcast_to(places, confidence.shape)


def _zero_states(batch: Size, output: PyTree) -> Array:
    return jnp.zeros(output["hidden"].shape, jnp.float32)
