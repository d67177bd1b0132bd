"""Records of a split for calibration and evaluation: a few numbers for each exit and row.

Outputs are not kept.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.labels import exact, rows_counted
from dynexit.core.shapes import (
    AnyArray,
    Array,
    Bool,
    ExitRows,
    Float,
    HostArray,
    Int,
    Num,
    PyTree,
    Rows,
    Shaped,
)
from dynexit.core.types import Criterion, Labels
from dynexit.criteria.memory import first_memory
from dynexit.engine.rows import check_score, has_nan
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

Predict: TypeAlias = Callable[[Rows], Shaped[Array, "b ..."]]
Score: TypeAlias = Callable[[Any, Any], Shaped[AnyArray, "b"]]


class Records(NamedTuple):
    """Every exit of every row of one split, on the host.

    Attributes:
      split: "train", "calibration" or "test".
      scores: of the criterion, leaves `[E, M]` or `[E, M, small]`.
      predictions: what each exit answers, `[E, M]` or `[E, M, ...]`.
      right: float32 `[E, M]`, the method's score of each answer.
      losses: float32 `[E, M]`, cross-entropy of each exit in nats; None where outputs hold no
        logits for the labels.
      nan: bool `[E, M]`, exits whose output held a NaN.
      labels: `[M]`, or `[M, ...]` with one for each place of a row.
      counts: bool `[M]`, rows that have a label.
      fingerprint: a digest of the examples; equal data have equal fingerprints.
    """

    split: str
    scores: ExitRows
    predictions: Shaped[HostArray, "E M ..."]
    right: Float[HostArray, "E M"]
    losses: Float[HostArray, "E M"] | None
    nan: Bool[HostArray, "E M"]
    labels: Num[HostArray, "M ..."]
    counts: Bool[HostArray, "M"]
    fingerprint: str

    def rows(self, chosen: Int[HostArray, "m"] | Bool[HostArray, "M"] | slice) -> "Records":
        """The records of some rows: indices or a mask, of `[M]`."""
        per_exit = lambda tree: jax.tree.map(lambda a: a[:, chosen], tree)
        return self._replace(
            scores=per_exit(self.scores),
            predictions=per_exit(self.predictions),
            right=per_exit(self.right),
            losses=per_exit(self.losses),
            nan=per_exit(self.nan),
            labels=self.labels[chosen],
            counts=self.counts[chosen],
        )


def observed(
    criterion: Criterion,
    predict: Predict,
    score: Score,
    labels: Labels,
) -> Callable[[Int[Array, ""], Rows, PyTree], tuple[dict[str, Rows], PyTree]]:
    """`observe(exit, output, memory) -> (kept, memory)` for `dx.engine.run_observed`.

    The keys of what is kept of one exit of a batch are fields of `Records`.
    """

    def observe(exit: Array, output: PyTree, memory: PyTree) -> tuple[dict[str, PyTree], PyTree]:
        value, memory = criterion.score(exit, output, memory)
        check_score(value, labels.shape[0])
        prediction = predict(output)
        right = jnp.asarray(score(prediction, labels))
        if right.shape != labels.shape[:1]:
            raise ValueError(
                f"`method.score` must return one number a row, shape [{labels.shape[0]}], got "
                f"{list(right.shape)}"
            )
        kept = {
            "scores": value,
            "predictions": prediction,
            "right": right.astype(jnp.float32),
            "losses": _cross_entropy(output, labels),
            "nan": has_nan(output),
        }
        return kept, memory

    return observe


def records_of(
    outputs: ExitRows,
    labels: Sequence[Any] | Num[AnyArray, "B ..."],
    criterion: Criterion,
    predict: Predict,
    score: Score = exact,
    split: str = "calibration",
    fingerprint: str = "",
) -> Records:
    """Records from outputs that are in memory; `dx.evaluation.record` makes them from a network.

    Args:
      outputs: leaves `[E, M, ...]`.
      labels: `[M]` or `[M, ...]`.
      criterion: whose scores are kept; its thresholds do not matter.
      predict, score: as in `Method`.
      split, fingerprint: of the data.

    Returns:
      `Records`.

    Raises:
      TypeError, ValueError: labels or outputs that the score does not take.

    Example:
      >>> import dynexit as dx
      >>> # [E=2, M=2, C=2]
      >>> logits = jnp.array([[[2.0, 0.0], [0.1, 0.0]], [[9.0, 0.0], [0.0, 9.0]]])
      >>> rule = dx.criteria.max_probability_above(0.5)
      >>> records_of(logits, np.array([0, 1]), rule, lambda z: z.argmax(-1)).right.tolist()
      [[1.0, 0.0], [1.0, 1.0]]
    """
    given = np.asarray(labels)
    for path, leaf in jax.tree_util.tree_flatten_with_path(outputs)[0]:
        if np.shape(leaf)[1:2] != given.shape[:1] or not np.size(leaf):
            raise ValueError(
                f"`outputs`{jax.tree_util.keystr(path)} must have shape [E, M, ...] with M = "
                f"{len(given)} as the labels, got {np.shape(leaf)}"
            )

    @jax.jit
    def run(outputs: PyTree, labels: Array) -> dict[str, PyTree]:
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), outputs)
        memory = first_memory(criterion, labels.shape[0], one, len(jax.tree.leaves(outputs)[0]))
        observe = observed(criterion, predict, score, labels)

        def body(memory: PyTree, x: tuple[Array, PyTree]) -> tuple[PyTree, PyTree]:
            exit, output = x
            kept, memory = observe(exit, output, memory)
            return memory, kept

        exits = jnp.arange(len(jax.tree.leaves(outputs)[0]), dtype=jnp.int32)
        return jax.lax.scan(body, memory.score, (exits, outputs))[1]

    outputs = jax.tree.map(jnp.asarray, outputs)
    kept = jax.tree.map(np.asarray, run(outputs, jnp.asarray(given)))
    return Records(split, labels=given, counts=rows_counted(given), fingerprint=fingerprint, **kept)


def _cross_entropy(output: PyTree, labels: Array) -> Array | None:
    """float32 `[b]` where the output holds logits of the labels, else None."""
    logits: Any = output.get("logits") if isinstance(output, dict) else output
    fits = (
        hasattr(logits, "dtype")
        and jnp.issubdtype(logits.dtype, jnp.floating)
        and jnp.issubdtype(labels.dtype, jnp.integer)
        and logits.shape[:-1] == labels.shape
        and logits.shape[-1] > 1
    )
    if not fits:
        return None
    return multi_exit_cross_entropy(logits[None], labels)[0].astype(jnp.float32)
