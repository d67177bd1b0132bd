"""Adaptive computation time (ACT) as a step: a mean of outputs weighted by halting probability.

The state of `averaged_step` adds to the given step's state the running mean and the accumulated
halting probability h of each row. Output n is the prediction if n is the last step, so the current
output has the whole remaining probability 1 - h as its weight. No step needs to know whether it is
the last. Therefore `run_all` in training, `run_until` in inference and a stream whose rows are at
different steps compute the same numbers. Rows exit by `criteria.gate_above(1 - epsilon)`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.checks import entries, shapes
from dynexit.core.shapes import Array, PyTree, Rows
from dynexit.core.types import Model, Step, wrapped_training

UPDATES = ("accumulated", "basic")
HALTING, MASK = "halt_logit", "mask"
Head: TypeAlias = Callable[[PyTree, Rows], dict[str, Rows]]


def averaged_step(
    step: Step, epsilon: float = 0.01, update: str = "accumulated", head: Head | None = None
) -> Step:
    """A step whose outputs are ACT's weighted mean of the given step's outputs.

    p_n = sigmoid(halt_logit_n). While h_{n-1} + p_n <= 1 - epsilon, the weight w_n is p_n. At the
    first n where it exceeds that, the position halts with the remainder w_n = 1 - h_{n-1}; its
    later weights are 0. h_n = h_{n-1} + w_n, and with r = 1 - h_{n-1}, the weight of a last step,

      accumulated:  m_n = m_{n-1} + w_n y_n,             output_n = m_{n-1} + r y_n
      basic:        m_n = (1 - w_n) m_{n-1} + w_n y_n,   output_n = (1 - r) m_{n-1} + r y_n

    Args:
      step: returns `{"halt_logit": [b] or [b, ...], ...}`, one logit per row or per position. The
        other entries are averaged; their leaves start with the axes of the halting logit. An entry
        "mask", bool `[b, ...]` and False at padded positions, is returned unchanged; padded
        positions halt at the first step.
      epsilon: above 0 and below 1.
      update: "accumulated" is Graves' sum. "basic" is the default of the released Universal
        Transformer, where the final weight of y_n is w_n prod_{i>n} (1 - w_i); these sum to less
        than 1.
      head: `head(weights, mean) -> output`, from the dict of averaged entries to a dict of outputs;
        None for the averaged entries themselves.

    Returns:
      A `Step` on states of `averaging_state`. Its outputs are those of the head, and
      "halt_logit", unchanged; "accumulated", h_n, `[b]` or `[b, ...]`, exactly 1 once halted; and
      "gate" `[b]`, the minimum of "accumulated" over the positions of a row. Sums and means are
      float32 for any type of the step.

    Raises:
      ValueError: `epsilon` is not between 0 and 1, or `update` is unknown; while tracing, the step
        has no "halt_logit" or no other entry, or an entry does not start with the axes of the
        logit.

    Example:
      >>> import dynexit as dx
      >>> logit = lambda p, n: jax.scipy.special.logit(p[n.astype(int) - 1])
      >>> head = lambda p, n: {"logits": n[:, None], "halt_logit": logit(p, n)}
      >>> step = dx.tied_step(lambda p, n: n + 1, head, jnp.array([0.3, 0.4, 0.5, 0.5]))
      >>> mean, start = averaged_step(step), averaging_state(step, jnp.zeros(1))
      >>> halted = dx.run_until(mean, start, 4, dx.criteria.gate_above(0.99))
      >>> # 3, and 0.3 x 1 + 0.4 x 2 + 0.3 x 3
      >>> int(halted.exit_depth[0]), round(float(halted.output["logits"][0, 0]), 4)
      (3, 2.0)

    Source: Graves 2016, ACT, section 2; Dehghani et al. 2019 and its two public versions for
      "basic". Deviation: the public versions add no remainder at the step limit.
    """
    _check(epsilon, update)
    run = _Averaged(update, head)
    return dataclasses.replace(step, apply=Partial(run, step.apply, jnp.float32(1 - epsilon)))


def averaging_state(step: Step, state: Rows) -> Rows:
    """The initial state of `averaged_step`: m_0 = 0 and h_0 = 0.

    Args:
      step: the step that is averaged.
      state: its initial state, leaves `[B, ...]`.

    Returns:
      `{"inner": state, "mean": zeros, "spent": zeros}`; "mean" has the shapes of the averaged
      entries and "spent", which is h, that of the halting logit, `[B]` or `[B, ...]`; both float32.

    Raises:
      ValueError: the step has no "halt_logit" or no other entry, or an entry does not start with
        the axes of the logit.

    Example:
      >>> import dynexit as dx
      >>> head = lambda p, h: {"logits": h, "halt_logit": h[:, 0]}
      >>> state = averaging_state(dx.tied_step(lambda p, h: h, head, ()), jnp.ones((2, 3)))
      >>> state["mean"]["logits"].shape, state["spent"].shape
      ((2, 3), (2,))
    """
    i = jnp.int32(0)
    _, output = jax.eval_shape(lambda s: step.apply(step.select(i), i, s), shapes(state))
    halting, values = _parts(output)
    zeros = lambda s: jnp.zeros(s.shape, jnp.float32)
    return {"inner": state, "mean": jax.tree.map(zeros, values), "spent": zeros(halting)}


def averaged(model: Model, epsilon: float = 0.01, update: str = "accumulated") -> Model:
    """An ACT model from a model with halting logits: the outputs are averaged over the steps.

    Args:
      model: a model without stages whose outputs are `{"logits": [b, ..., C], "halt_logit": [b] or
        [b, ...]}`.
      epsilon, update: as in `averaged_step`.

    Returns:
      A `Model` with the same parameters and the outputs of `averaged_step`; it has no decoder.

    Raises:
      TypeError: the model has several stages.
      ValueError: as `averaged_step`.

    Example:
      >>> import dynexit as dx
      >>> model = averaged(dx.models.Gru(width=16, steps=10).build((8,), 2))
      >>> params = model.init(jax.random.key(0))
      >>> state = model.embed(params, jnp.ones((3, 8)))
      >>> outputs = dx.run_all(model.steps(params), state, model.depth)
      >>> sorted(outputs), outputs["logits"].shape
      (['accumulated', 'gate', 'halt_logit', 'logits'], (10, 3, 2))

    Source: Graves 2016, who averages states and outputs; for a linear head both give the same mean.
    """
    _check(epsilon, update)
    if isinstance(model.depth, tuple):
        raise TypeError(f"`model` must have one step, got {len(model.depth)} stages")

    def embed(params: PyTree, inputs: Rows) -> Rows:
        return averaging_state(model.steps(params), model.embed(params, inputs))

    def steps(params: PyTree) -> Step:
        return averaged_step(model.steps(params), epsilon, update)

    training = wrapped_training(model, lambda m: averaged(m, epsilon, update))
    return Model(model.init, embed, steps, model.depth, model.names, training=training)


@dataclasses.dataclass(frozen=True)
class _Averaged:
    """Instances with equal fields are equal, so that steps are not compiled again."""

    update: str
    head: Head | None

    def __call__(
        self, apply: Callable[..., Any], most: Array, weights: PyTree, i: Array, state: PyTree
    ) -> tuple[PyTree, PyTree]:
        entries(state, ("inner", "mean", "spent"), "`averaging_state`")
        inner, output = apply(weights, i, state["inner"])
        logit, values = _parts(output)
        h, mean = state["spent"], state["mean"]
        p = jax.nn.sigmoid(logit.astype(jnp.float32))
        mask = {MASK: output[MASK]} if MASK in output else {}
        if mask and mask[MASK].ndim == p.ndim:  # padded positions halt at once and delay no row
            p = jnp.where(mask[MASK], p, 1.0)
        remainder = 1 - h
        w = jnp.where(h + p > most, remainder, p)
        h = jnp.where(h + p > most, 1.0, h + p)
        accumulates = self.update == "accumulated"

        def updated(weight: Array) -> PyTree:
            def one(m: Array, y: Array) -> Array:
                w = weight.reshape(weight.shape + (1,) * (y.ndim - weight.ndim))
                return (m if accumulates else (1 - w) * m) + w * y.astype(jnp.float32)

            return jax.tree.map(one, mean, values)

        final = updated(remainder)
        if self.head is not None:
            final = self.head(weights, final)
        gate = h.min(axis=tuple(range(1, h.ndim)))
        output = {**final, HALTING: logit, "accumulated": h, "gate": gate, **mask}
        return {"inner": inner, "mean": updated(w), "spent": h}, output


def _check(epsilon: float, update: str) -> None:
    if not 0 < epsilon < 1:
        raise ValueError(f"`epsilon` must lie between 0 and 1, both excluded, got {epsilon}")
    if update not in UPDATES:
        raise ValueError(f"`update` must be one of {', '.join(map(repr, UPDATES))}, got {update!r}")


def _parts(output: PyTree) -> tuple[Any, dict[str, PyTree]]:
    """The halting logit and the entries that are averaged.

    Raises:
      ValueError: one of them is missing, or their axes do not match.
    """
    if not isinstance(output, dict) or HALTING not in output or not set(output) - {HALTING, MASK}:
        keys = f"keys {sorted(output)}" if isinstance(output, dict) else type(output).__name__
        raise ValueError(
            f"`step` must return a dict with {HALTING!r} and the entries to average, got {keys}"
        )
    halting = output[HALTING]
    values = {name: value for name, value in output.items() if name not in (HALTING, MASK)}
    for leaf in jax.tree.leaves(values):
        if leaf.shape[: halting.ndim] != halting.shape:
            raise ValueError(
                f"`step` must return entries whose shape starts with that of {HALTING!r}, "
                f"{halting.shape}, got {leaf.shape}"
            )
    return halting, values
