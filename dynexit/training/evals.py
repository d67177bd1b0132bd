"""Evaluation during training: every exit on the calibration split, and functions of the user.

The cost of one evaluation is one forward pass through all blocks and exits for each of its M
examples, `M = min(eval_rows, size of the split)`. An update is about three such passes over
`batch_size` examples, four with `remat`, so an evaluation takes the time of at most about
`M / (3 batch_size)` updates. Evaluation changes no bit of the training state.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynexit.core.labels import check_labels, rows_counted
from dynexit.core.processes.together import nothing
from dynexit.core.settings import Training
from dynexit.core.shapes import Array, Bool, Int, PyTree
from dynexit.core.types import Experiment
from dynexit.data.source import Batch
from dynexit.engine.observe import run_observed
from dynexit.engine.run import run_all
from dynexit.objectives.multi_exit import multi_exit_cross_entropy
from dynexit.training.logs import EVAL
from dynexit.training.parallel.constants import Compiled
from dynexit.training.parallel.mesh import replicated
from dynexit.training.parallel.placement import own_rows, put_batch
from dynexit.training.state import cast

Evaluate: TypeAlias = Callable[[PyTree], dict[str, float]]
Evals: TypeAlias = Sequence[tuple[str, Callable[[PyTree], Mapping[str, Any]]]]


def is_due(settings: Training, step: int) -> bool:
    """Whether the parameters after update `step` are evaluated.

    Example:
      >>> [s for s in range(1, 8) if is_due(Training(steps=7, eval_every=3), s)]
      [3, 6, 7]
    """
    every = settings.eval_every
    if every is None:
        every = max(1, settings.steps // 10)
    return every > 0 and (step % every == 0 or step == settings.steps)


def make_evaluate(
    experiment: Experiment,
    settings: Training,
    mesh: Mesh,
    evals: Evals = (),
    between: Callable[[], None] = nothing,
) -> Evaluate:
    """Makes `evaluate(params) -> metrics`, compiled once, over the calibration split.

    Of the split, `settings.eval_rows` rows are used, evenly spread. They are read in batches of
    `settings.batch_size` with at most two batches on the devices; padding rows of the last batch
    do not count. Results are means over the rows with a label, summed on the host in float64 in the
    order of the split. The compute type is `settings.precision`. Several processes all call the
    function, read the rows of their own devices, and have the metrics.

    Args:
      experiment: its calibration split is read at the first call and kept.
      settings: batch size, precision and `eval_rows`.
      mesh: the mesh that the parameters are on.
      evals: pairs `(name, function)` with `function(params) -> {key: number}`; each number becomes
        the metric `eval_<name>_<key>`. The parameters must not be kept: they are donated to the
        next update.
      between: is called before each batch; what it raises ends the evaluation.

    Returns:
      The function. Its metrics are floats:
      `eval_accuracy_exit_<e>` for e in 0..E-1 by `Method.predict` and `Method.score`, and
      `eval_accuracy`, their mean over the exits;
      `eval_loss_exit_<e>` in nats and `eval_loss`, the cross-entropy, where the output is logits or
      has the entry "logits";
      `eval_objective`, the method's objective at progress 1, and `eval_<metric>` for each metric of
      the objective, among them the halting statistics of methods that halt. The objective is
      computed row by row; methods without one have none of these.

    Raises:
      ValueError: from the function: labels that are not classes, or two metrics of one name.
    """
    run = Compiled(_by_row(experiment, settings), mesh, (), replicated(mesh))
    held: dict[str, Any] = {}  # the split, read at the first call

    def means(params: PyTree) -> dict[str, float]:
        if not held:
            held.update(experiment.calibration.examples())
            check_labels(held["labels"], len(experiment.classes), "experiment.calibration")
        totals: dict[str, Any] = collections.defaultdict(float)
        waiting, counted = None, 0
        size = settings.batch_size
        first, last = own_rows(size, mesh)
        rows = spread(len(held["labels"]), settings.eval_rows)
        for batch, counts in _batches(held, rows, size, first, last):
            between()
            values = run(params, put_batch(batch, mesh, first=first, size=size))
            _add(totals, waiting)  # waits for the batch before this one
            waiting, counted = (values, counts), counted + int(counts.sum())
        _add(totals, waiting)
        return _flat({name: total / max(counted, 1) for name, total in totals.items()})

    def evaluate(params: PyTree) -> dict[str, float]:
        metrics = {EVAL + name: value for name, value in means(params).items()}
        for name, function in evals:
            for key, value in function(params).items():
                if (full := f"{EVAL}{name}_{key}") in metrics:
                    raise ValueError(f"`evals` gives the metric {full!r}, which exists already")
                metrics[full] = float(value)
        return metrics

    return evaluate


def score(metrics: Mapping[str, float]) -> float | None:
    """What the best checkpoint maximises.

    The mean accuracy over the exits; without an accuracy the negative loss, the mean over the
    exits or else the objective's; None where there is neither.

    Example:
      >>> score({"eval_accuracy": 0.9, "eval_loss": 0.3}), score({"eval_objective": 0.3})
      (0.9, -0.3)
    """
    for name, sign in (("accuracy", 1), ("loss", -1), ("objective", -1)):
        if EVAL + name in metrics:
            return sign * metrics[EVAL + name]
    return None


def in_short(metrics: Mapping[str, float]) -> str:
    """The last exit's result in a few words, for the progress bar; empty where there is none."""
    for name in ("accuracy", "loss"):
        exits = [key for key in metrics if key.startswith(f"{EVAL}{name}_exit_")]
        if exits:
            return f"calibration {name} {metrics[exits[-1]]:.4f}"
    return ""


def _by_row(
    experiment: Experiment, settings: Training
) -> Callable[[PyTree, Batch], dict[str, Array]]:
    """`values(params, batch) -> {name: float32 [B] or [E, B]}`."""
    model, method = experiment.model, experiment.method
    compute = jnp.dtype(settings.precision)

    def values(params: PyTree, batch: Batch) -> dict[str, Array]:
        inputs, labels = batch["inputs"], batch["labels"]
        if experiment.prepare is not None:
            inputs = experiment.prepare(inputs)
        params, inputs = cast(params, compute), cast(inputs, compute)
        network = model.steps(params), model.embed(params, inputs), model.depth

        def of_exit(output: PyTree) -> dict[str, Array]:
            output, rows = cast(output, jnp.float32), {}
            if method.predict is not None:
                rows["accuracy"] = method.score(method.predict(output), labels)
            if (logits := _logits(output, labels)) is not None:
                rows["loss"] = multi_exit_cross_entropy(logits[None], labels)[0]
            return rows

        if method.objective is None:  # no output is kept: logits may be of many tokens
            rows = run_observed(*network, lambda _, output, memory: (of_exit(output), memory))
        else:
            outputs = cast(run_all(*network), jnp.float32)
            of_one_row = _of_one_row(method.objective)
            objective, own = jax.vmap(of_one_row, (1, 0))(outputs, labels)
            rows = {**own, **jax.vmap(of_exit)(outputs), "objective": objective}
        return {name: each.astype(jnp.float32) for name, each in rows.items()}

    return values


def _of_one_row(
    objective: Callable[[PyTree, Array, Array], tuple[Array, dict[str, Array]]],
) -> Callable[[PyTree, Array], tuple[Array, dict[str, Array]]]:
    """The objective of one row: outputs `[E, ...]`, a label `[...]`."""

    def of_one_row(output: PyTree, label: Array) -> tuple[Array, dict[str, Array]]:
        outputs = jax.tree.map(lambda a: a[:, None], output)
        losses, metrics = objective(outputs, label[None], jnp.float32(1))
        return losses[0], metrics

    return of_one_row


def _logits(output: PyTree, labels: Array) -> Array | None:
    """The logits `[B, ..., C]` with C above 1 among the outputs of an exit, if labels fit them."""
    logits = output.get("logits") if isinstance(output, Mapping) else output
    if not isinstance(logits, jax.Array) or logits.ndim < 2:
        return None
    fits = logits.shape[:-1] == labels.shape and logits.shape[-1] > 1
    floats = jnp.issubdtype(logits.dtype, jnp.floating)
    return logits if fits and floats and jnp.issubdtype(labels.dtype, jnp.integer) else None


def spread(count: int, wanted: int | None) -> Int[np.ndarray, "M"]:
    """Indices of at most `wanted` of `count` rows, evenly spread; None for all.

    Example:
      >>> spread(10, 4).tolist(), spread(3, 4).tolist()
      ([0, 2, 5, 7], [0, 1, 2])
    """
    wanted = count if wanted is None else min(wanted, count)
    return np.arange(wanted) * count // wanted


def _batches(
    examples: Batch, rows: np.ndarray, size: int, first: int, last: int
) -> Iterator[tuple[Batch, Bool[np.ndarray, "size"]]]:
    """Rows `first`..`last - 1` of each batch of the rows, and which rows of the batch count.

    The last batch is padded. Padding rows and rows without a label do not count.
    """
    taken = {name: examples[name] for name in ("inputs", "labels")}
    labelled = rows_counted(np.asarray(examples["labels"]))
    for start in range(0, len(rows), size):
        places = np.arange(start, start + size)
        chosen = rows[places % len(rows)]
        batch = jax.tree.map(lambda a, own=chosen[first:last]: a[own], taken)
        yield batch, (places < len(rows)) & labelled[chosen]


def _add(totals: dict[str, Any], values: tuple[dict[str, Array], np.ndarray] | None) -> None:
    if values is not None:
        by_row, counts = values
        for name, value in jax.device_get(by_row).items():
            totals[name] = totals[name] + value[..., counts].sum(-1, dtype=np.float64)


def _flat(means: Mapping[str, Any]) -> dict[str, float]:
    """`[E]` as the mean over the exits and one number for each exit."""
    exits = {
        f"{name}_exit_{e}": float(each)
        for name, value in means.items()
        if np.ndim(value)
        for e, each in enumerate(value)
    }
    return {**{name: float(np.mean(value)) for name, value in means.items()}, **exits}
