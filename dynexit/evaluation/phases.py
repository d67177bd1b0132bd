"""Phases of a trained network: contiguous layers with similar states."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import AnyArray, Float, Num, PyTree


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


def mean_over_places(state: Num[AnyArray, "B *places D"]) -> Float[np.ndarray, "B D"]:
    """`[B, ..., D]` to `[B, D]`, the mean over all axes between; `[B, D]` is unchanged."""
    state = np.asarray(state, np.float64)
    return state.reshape(state.shape[0], -1, state.shape[-1]).mean(axis=1)


def similarity(
    states: Mapping[str, PyTree] | Sequence[PyTree],
    summary: Callable[[PyTree], Num[AnyArray, "B n"]] = mean_over_places,
) -> Float[np.ndarray, "L L"]:
    """S[l, m] = mean over rows of cos(v_l, v_m), where v_l is a summary of layer l's state.

    Args:
      states: of every layer in order, leaves `[B, ...]`; as `dx.models.features` gives them.
      summary: `summary(state) -> v [B, n]`.

    Returns:
      float64 `[L, L]`, symmetric, ones on the diagonal.

    Raises:
      ValueError: no layers, or summaries of different shapes.

    Example:
      >>> states = [np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]]), np.array([[0.0, 1.0]])]
      >>> similarity(states).tolist()
      [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Source: the block-recurrent hypothesis for vision transformers (Raptor) and its released code,
      where v is the class token beside the mean of the patches. States of massive channels dominate
      a cosine: leave registers out of the summary.
    """
    vectors = [
        np.asarray(summary(s), np.float64)
        for s in (states.values() if isinstance(states, Mapping) else states)
    ]
    if not vectors or len({v.shape for v in vectors}) > 1 or vectors[0].ndim != 2:
        raise ValueError(
            "`states` must have one summary of shape [B, n] a layer, got shapes "
            f"{[v.shape for v in vectors]}"
        )
    stacked = np.stack(vectors)
    unit = stacked / np.maximum(
        np.linalg.norm(stacked, axis=-1, keepdims=True), np.finfo(float).tiny
    )
    return np.einsum("lbn,mbn->lm", unit, unit) / stacked.shape[1]


def phases(similarities: Num[AnyArray, "L L"], count: int) -> Phases:
    """The best cut into contiguous phases.

    It maximises the sum over phases of (sum of S within) / (layers), by dynamic programming in
    O(count L^2).

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

    Source: Raptor. Deviation: the paper bisects recursively by maximal cut (`phases_by_cut`), which
      need not give contiguous phases.
    """
    S = _square(similarities)
    layers = len(S)
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


def phases_by_cut(similarities: Num[AnyArray, "L L"], count: int) -> Phases:
    """Phases by bisection: the cluster with the heaviest maximal cut of W = 1 - S is split.

    Splits are repeated until there are `count` clusters. The search is exhaustive, up to 2^(L - 1)
    ways to split, so L is at most 20. Both sides of a split keep at least two layers.

    Args:
      similarities: S `[L, L]`.
      count: k phases, 1..L // 2.

    Returns:
      `Phases`, whose score is that of `phases` for the same cuts.

    Raises:
      TypeError, ValueError: S is not square, holds a NaN or has more than 20 layers; `count` is not
        in 1..L // 2; no cluster is large enough to be split again; a phase is not contiguous.

    Example:
      >>> S = np.kron(np.eye(2), np.ones((3, 3)))
      >>> phases_by_cut(S, 2).cuts
      (0, 3, 6)

    Source: Raptor's released code. Deviation: the code stops once the best cut weighs less than a
      fraction of sum(W) / 2, here at `count`; the code does not check that phases are contiguous.
    """
    S = _square(similarities)
    if len(S) > 20:
        raise ValueError(
            "`similarities` must be of at most 20 layers, because all splits are tried, got "
            f"{len(S)}; `phases` has no such limit"
        )
    if positive_integer(count, "count") > max(1, len(S) // 2):
        raise ValueError(
            f"`count` must be at most {max(1, len(S) // 2)}, two layers a phase, got {count}"
        )
    clusters = [np.arange(len(S))]
    while len(clusters) < count:
        splits = [
            (*_heaviest_cut(1 - S[np.ix_(members, members)]), k)
            for k, members in enumerate(clusters)
        ]
        weight, side, k = max(splits, key=lambda split: split[0])
        if weight == -np.inf:
            raise ValueError(
                f"`count` of {count} phases cannot be reached: none of "
                f"{[len(c) for c in clusters]} layers can be split"
            )
        members = clusters.pop(k)
        clusters += [members[side], members[~side]]
    clusters.sort(key=lambda members: members[0])
    cuts = (0, *(int(members[-1]) + 1 for members in clusters))
    if any(members[-1] - members[0] + 1 != len(members) for members in clusters):
        raise ValueError(
            "`similarities` has a maximal cut whose phases are not contiguous: "
            f"{[c.tolist() for c in clusters]}"
        )
    score = sum(S[np.ix_(members, members)].sum() / len(members) for members in clusters)
    return Phases(cuts, tuple(len(members) for members in clusters), float(score))


def _heaviest_cut(W: np.ndarray) -> tuple[float, np.ndarray]:
    """The weight of the maximal cut and its side without layer 0, bool `[n]`.

    The weight is -inf where fewer than 4 layers allow no cut.
    """
    n = len(W)
    best, side = -np.inf, np.zeros(n, bool)
    for labels in np.array_split(np.arange(2 ** (n - 1)), max(1, 2 ** (n - 14))):
        apart = np.zeros((len(labels), n))
        apart[:, 1:] = labels[:, None] >> np.arange(n - 1) & 1
        weights = np.einsum("li,lj,ij->l", apart, 1 - apart, W, optimize=True)
        weights[(apart.sum(1) < 2) | (apart.sum(1) > n - 2)] = -np.inf
        if weights.max() > best:
            best, side = float(weights.max()), apart[weights.argmax()] > 0
    return best, side


def _square(similarities: Num[AnyArray, "..."]) -> np.ndarray:
    S = np.asarray(similarities, np.float64)
    if S.ndim != 2 or S.shape != (len(S), len(S)) or np.isnan(S).any():
        raise ValueError(
            f"`similarities` must have shape [L, L] and hold no NaN, got shape {S.shape}"
        )
    return S
