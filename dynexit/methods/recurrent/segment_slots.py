"""Segments in slots: one segment per update, and halted rows are replaced at once."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.checks import entries
from dynexit.core.labels import exact, rows_counted
from dynexit.core.shapes import Array, Bool, Float, Int, Key, PyTree
from dynexit.core.stages import one_depth
from dynexit.core.types import Carried, Model
from dynexit.methods.answers import predict
from dynexit.objectives.multi_exit import mean_over_rows

Answer: TypeAlias = Callable[[Float[Array, "S B ... C"], Int[Array, "B ..."]], Float[Array, "S B"]]
"""The cross-entropy of each segment and row, of logits and labels."""


def segment_slots(most: int, explore: float, halting_weight: float, answer: Answer) -> Carried:
    """Runs one segment of every slot per update; no segment is run for a halted row.

    The row of the batch at the same index replaces a halted row and starts at the fixed first
    state. Rows offered to the other slots are dropped. L_b = CE_b + w BCE(q_b, right_b) over this
    one segment. A row halts once q > 0, not before a drawn number of segments, and at S in any
    case.

    Args:
      most, explore, halting_weight: S, the exploration probability and w of `segments`.
      answer: `answer(logits [1, B, ..., C], labels) -> [1, B]`, the CE.

    Returns:
      `Carried`: slots hold "inputs", "labels", "state", "taken" (segments), "least" and "halted".
      Metrics: loss_answer and loss_halting of this segment, over slots; slot_segments, the mean
      number of segments that the rows in the slots have taken; refilled, the fraction of slots that
      took a new row; halted, the fraction that halted; accuracy_halted, how often their answers are
      right (0 where none halted); halting_accuracy, how often q > 0 exactly where the answer is
      right.
    """

    def begin(model: Model, params: PyTree, inputs: PyTree, labels: Array) -> PyTree:
        if one_depth(model) < most:
            raise ValueError(
                f"`model` has {model.depth} segments, fewer than the {most} of training (`most`)"
            )
        if model.steps(params).depth is not None:
            raise ValueError("`model` must be weight-tied: each slot is at its own segment")
        rows, state = jnp.ones(labels.shape[0], jnp.int32), model.embed(params, inputs)
        entries(
            state, ("input",), "a model whose state holds the input, such as dx.models.Recursive"
        )
        slots = {"inputs": inputs, "labels": labels, "state": state, "taken": rows, "least": rows}
        return {**slots, "halted": rows > 0}

    def loss(
        model: Model,
        params: PyTree,
        carry: PyTree,
        inputs: PyTree,
        labels: Array,
        key: Array,
        progress: Array,
    ) -> tuple[Array, dict[str, Array], PyTree]:
        free = carry["halted"]
        rows = jax.tree.map(
            lambda new, old: jnp.where(free.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            {
                "inputs": inputs,
                "labels": labels,
                "state": model.embed(params, inputs),
                "taken": jnp.zeros_like(carry["taken"]),
                "least": least_segments(key, len(free), most, explore),
            },
            {name: value for name, value in carry.items() if name != "halted"},
        )
        step = model.steps(params)
        begun = {
            **jax.lax.stop_gradient(rows["state"]),
            "input": model.embed(params, rows["inputs"])["input"],
        }
        state, output = step.apply(step.select(0), 0, begun)
        sure, taken = output["halt_logit"].astype(jnp.float32), rows["taken"] + 1
        right = exact(predict(output["logits"]), rows["labels"])
        answers, halting = (
            answer(output["logits"][None], rows["labels"])[0],
            binary_cross_entropy(sure, right),
        )
        halted = ((sure > 0) & (taken >= rows["least"])) | (taken >= most)
        share = lambda chosen: mean_over_rows(chosen, rows["labels"])
        metrics = {
            "loss_answer": share(answers),
            "loss_halting": share(halting),
            "slot_segments": share(taken),
            "refilled": share(free),
            "halted": share(halted),
            "accuracy_halted": share(halted & right) / jnp.maximum(share(halted), 1e-9),
            "halting_accuracy": share((sure > 0) == right),
        }
        carry = {**rows, "state": state, "taken": taken, "halted": halted}
        # with these weights the mean over all slots is that over the labelled rows
        counts = rows_counted(rows["labels"]).astype(answers.dtype)
        losses = (answers + halting_weight * halting) * counts / jnp.maximum(counts.mean(), 1e-9)
        return losses, metrics, jax.lax.stop_gradient(carry)

    return Carried(begin, loss)


def least_segments(key: Key[Array, ""], rows: int, most: int, explore: float) -> Int[Array, "rows"]:
    """Segments before which a row may not halt, int32 `[rows]`.

    The number is 1, and with probability `explore` U{2..most}. The key is consumed.

    Example:
      >>> least_segments(jax.random.key(0), 3, most=8, explore=0.0).tolist()
      [1, 1, 1]
    """
    first, second = jax.random.split(key)
    drawn = jax.random.randint(second, (rows,), min(2, most), most + 1)
    return jnp.where(jax.random.bernoulli(first, explore, (rows,)), drawn, 1)


def binary_cross_entropy(
    logits: Float[Array, "*rows"], targets: Bool[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """-t ln sigmoid(q) - (1 - t) ln sigmoid(-q); targets are bools in the shape of the logits."""
    return -jax.nn.log_sigmoid(jnp.where(targets, logits, -logits))
