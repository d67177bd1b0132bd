"""Phases of a trained network: stretches of layers whose states are alike, found from the similarity of all pairs of layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dynexit.core.checks import positive_integer
from dynexit.core.types import PyTree


class Phases(NamedTuple):
    """A network's layers cut into contiguous phases.

    Attributes:
      cuts: k + 1 integers, 0 first and L last: phase j is the layers cuts[j] .. cuts[j + 1] - 1.
      counts: layers in each phase, sum L.
      score: what was maximised; L for layers that are all alike within their phases.
    """

    cuts: tuple[int, ...]
    counts: tuple[int, ...]
    score: float


def mean_over_places(state: Any) -> np.ndarray:
    """`[B, ..., D]` to `[B, D]`, the mean over all axes between; a vector a row stays what it is."""
    state = np.asarray(state, np.float64)
    return state.reshape(state.shape[0], -1, state.shape[-1]).mean(axis=1)


def similarity(
    states: Mapping[str, PyTree] | Sequence[PyTree], summary: Callable[[PyTree], np.ndarray] = mean_over_places
) -> np.ndarray:
    """S[l, m] = mean over rows of cos(v_l, v_m), where v_l is a summary of layer l's state.

    Args:
      states: of every layer in order, leaves `[B, ...]`; as `dx.backbones.features` gives them.
      summary: `summary(state) -> v [B, n]`.

    Returns:
      float64 `[L, L]`, symmetric, ones on the diagonal.

    Raises:
      ValueError: no layers, or summaries of different shapes.

    Example:
      >>> similarity([np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]]), np.array([[0.0, 1.0]])]).tolist()
      [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Source: the block-recurrent hypothesis for vision transformers (Raptor) and its released code, where v is the class token beside
    the mean of the patches. The states of massive channels dominate a cosine: leave registers out of the summary.
    """
    vectors = [np.asarray(summary(s), np.float64) for s in (states.values() if isinstance(states, Mapping) else states)]
    if not vectors or len({v.shape for v in vectors}) > 1 or vectors[0].ndim != 2:
        raise ValueError(f"`states` must have one summary of shape [B, n] a layer, got shapes {[v.shape for v in vectors]}")
    stacked = np.stack(vectors)
    unit = stacked / np.maximum(np.linalg.norm(stacked, axis=-1, keepdims=True), np.finfo(float).tiny)
    return np.einsum("lbn,mbn->lm", unit, unit) / stacked.shape[1]


def phases(similarities: Any, count: int) -> Phases:
    """The best cut into contiguous phases: the sum over phases of (sum of S within) / (layers) is as large as can be.

    By dynamic programming, O(count L^2).

    Args:
      similarities: S `[L, L]`.
      count: k phases, 1..L.

    Returns:
      `Phases`.

    Raises:
      TypeError, ValueError: S is not square, holds a NaN, or `count` is not in 1..L.

    Example:
      >>> S = np.kron(np.eye(2), np.ones((2, 2)))
      >>> phases(S, 2).cuts
      (0, 2, 4)

    Source: Raptor. Deviation: there recursive bisection by maximal cut, which need not give contiguous phases.
    """
    S = np.asarray(similarities, np.float64)
    layers = len(S)
    if S.ndim != 2 or S.shape != (layers, layers) or np.isnan(S).any():
        raise ValueError(f"`similarities` must have shape [L, L] and hold no NaN, got shape {S.shape}")
    if positive_integer(count, "count") > layers:
        raise ValueError(f"`count` must be at most the {layers} layers, got {count}")
    area = np.zeros((layers + 1, layers + 1))
    area[1:, 1:] = S.cumsum(0).cumsum(1)
    within = lambda i, j: (area[j, j] - area[i, j] - area[j, i] + area[i, i]) / (j - i)
    best = np.full((count + 1, layers + 1), -np.inf)
    best[0, 0] = 0.0
    came = np.zeros((count + 1, layers + 1), int)
    for k in range(1, count + 1):
        for j in range(k, layers + 1):
            scores = [best[k - 1, i] + within(i, j) for i in range(k - 1, j)]
            came[k, j] = k - 1 + int(np.argmax(scores))
            best[k, j] = max(scores)
    cuts = [layers]
    for k in range(count, 0, -1):
        cuts.append(int(came[k, cuts[-1]]))
    cuts = tuple(reversed(cuts))
    return Phases(cuts, tuple(int(n) for n in np.diff(cuts)), float(best[count, layers]))
