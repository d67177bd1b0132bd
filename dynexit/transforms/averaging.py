"""Adaptive computation time as a step: a running mean of what the steps say, each weighted by its
halting probability.

Beside the step's own state the rows carry the mean so far and the probability h that they have
spent. Output n is what the row would answer if n were its last step, which always gets all that is
left. So no step needs to know whether it is the last one: training with `run_all`, inference with
`run_until` and a stream with rows at steps of their own compute the same numbers, and the rule by
which rows leave is `criteria.gate_above(1 - epsilon)`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.checks import entries, shapes
from dynexit.core.types import Array, Model, PyTree, Step

UPDATES = ("accumulated", "basic")
HALTING = "halt_logit"
Head = Callable[[PyTree, PyTree], dict]


def averaged_step(
    step: Step, epsilon: float = 0.01, update: str = "accumulated", head: Head | None = None
) -> Step:
    """A step whose outputs are ACT's weighted mean of the given step's outputs.

    p_n = sigmoid(halt_logit_n). While h_{n-1} + p_n <= 1 - epsilon the weight w_n is p_n; at the
    first n where it is not, the place halts with what is left, w_n = 1 - h_{n-1}, and has weight 0
    from then on. h_n = h_{n-1} + w_n, and with the weight of a last step r = 1 - h_{n-1}

      accumulated:  m_n = m_{n-1} + w_n y_n,             output_n = m_{n-1} + r y_n
      basic:        m_n = (1 - w_n) m_{n-1} + w_n y_n,   output_n = (1 - r) m_{n-1} + r y_n

    Args:
      step: gives `{"halt_logit": [b] or [b, ...], ...}`; the other entries, leaves `[b, ...]` that
        begin with the axes of the halting logit, are what is averaged. One logit a row or one for
        each of its places.
      epsilon: above 0 and below 1.
      update: "accumulated" is Graves' sum; "basic" is the default of the released Universal
        Transformer, in whose answers w_n counts as w_n prod_{i>n} (1 - w_i); these sum to less than
        1.
      head: `head(weights, mean) -> output`, from the averaged entries, a dict, to the dict that is
        the output; None: as they are.

    Returns:
      A `Step` on states of `averaging_state`. Output: what the head gives, "halt_logit" as it came,
      "accumulated" `[b]` or `[b, ...]`, h_n, 1 exactly once halted; and "gate" `[b]`, the least of
      them over the places of a row. Sums and means are float32 whatever the step's type.

    Raises:
      ValueError: `epsilon` not between 0 and 1, an unknown `update`; while tracing, a step without
        "halt_logit" or with nothing beside it, and an entry that does not begin with the logit's
        axes.

    Example:
      >>> import dynexit as dx
      >>> says = lambda p, n: {"logits": n[:, None], "halt_logit": jax.scipy.special.logit(p[n.astype(int) - 1])}
      >>> step = dx.tied_step(lambda p, n: n + 1, says, jnp.array([0.3, 0.4, 0.5, 0.5]))
      >>> mean, start = averaged_step(step), averaging_state(step, jnp.zeros(1))
      >>> halted = dx.run_until(mean, start, 4, dx.criteria.gate_above(0.99))
      >>> # 3, and 0.3 x 1 + 0.4 x 2 + 0.3 x 3
      >>> int(halted.exit_depth[0]), round(float(halted.output["logits"][0, 0]), 4)
      (3, 2.0)

    Source: Graves 2016, ACT, section 2; Dehghani et al. 2019 and its two public versions for
      "basic", which compute the weights as
    here but give the step limit no remainder.
    """
    _check(epsilon, update)
    run = _Averaged(update, head)
    return dataclasses.replace(step, apply=Partial(run, step.apply, jnp.float32(1 - epsilon)))


def averaging_state(step: Step, state: PyTree) -> PyTree:
    """The state with which `averaged_step` begins: the given one, a mean of nothing, and no
    probability spent.

    Args:
      step: the step that is averaged.
      state: leaves `[B, ...]`, its first state.

    Returns:
      `{"inner": state, "mean": zeros, "spent": zeros}`, the last as the halting logits `[B]` or
      `[B, ...]`; float32.
    """
    i = jnp.int32(0)
    _, output = jax.eval_shape(lambda s: step.apply(step.select(i), i, s), shapes(state))
    halting, values = _parts(output)
    zeros = lambda s: jnp.zeros(s.shape, jnp.float32)
    return {"inner": state, "mean": jax.tree.map(zeros, values), "spent": zeros(halting)}


def averaged(model: Model, epsilon: float = 0.01, update: str = "accumulated") -> Model:
    """A model with halting logits as an ACT model: the same parameters, its answers averaged over
    the steps.

    Args:
      model: one step (no stages) that gives `{"logits": [b, ..., C], "halt_logit": [b] or [b,
        ...]}`.
      epsilon, update: as in `averaged_step`.

    Returns:
      `Model` with the outputs of `averaged_step`.

    Raises:
      TypeError: a model of several stages.
      ValueError: as `averaged_step`.

    Example:
      >>> import dynexit as dx
      >>> model = averaged(dx.models.gru_ponder(8, 2, width=16, steps=10))
      >>> params = model.init(jax.random.key(0))
      >>> outputs = dx.run_all(model.steps(params), model.embed(params, jnp.ones((3, 8))), model.depth)
      >>> sorted(outputs), outputs["logits"].shape
      (['accumulated', 'gate', 'halt_logit', 'logits'], (10, 3, 2))

    Source: Graves 2016. He averages states and outputs; of a linear head's answers both are the
      same mean.
    """
    _check(epsilon, update)
    if isinstance(model.depth, tuple):
        raise TypeError(f"`model` must have one step, got {len(model.depth)} stages")

    def embed(params: PyTree, inputs: PyTree) -> PyTree:
        return averaging_state(model.steps(params), model.embed(params, inputs))

    def steps(params: PyTree) -> Step:
        return averaged_step(model.steps(params), epsilon, update)

    return Model(model.init, embed, steps, model.depth, model.names)


@dataclasses.dataclass(frozen=True)
class _Averaged:
    """Equal update and head make equal (and so equally compiled) steps."""

    update: str
    head: Head | None

    def __call__(self, apply, most, weights, i, state):
        entries(state, ("inner", "mean", "spent"), "`averaging_state`")
        inner, output = apply(weights, i, state["inner"])
        logit, values = _parts(output)
        spent, mean = state["spent"], state["mean"]
        p = jax.nn.sigmoid(logit.astype(jnp.float32))
        left = 1 - spent
        w = jnp.where(spent + p > most, left, p)
        spent = jnp.where(spent + p > most, 1.0, spent + p)
        keeps = self.update == "accumulated"

        def moved(by: Array) -> PyTree:
            def one(m, y):
                share = by.reshape(by.shape + (1,) * (y.ndim - by.ndim))
                return (m if keeps else (1 - share) * m) + share * y.astype(jnp.float32)

            return jax.tree.map(one, mean, values)

        answer = moved(left)
        if self.head is not None:
            answer = self.head(weights, answer)
        gate = spent.min(axis=tuple(range(1, spent.ndim)))
        output = {**answer, HALTING: logit, "accumulated": spent, "gate": gate}
        return {"inner": inner, "mean": moved(w), "spent": spent}, output


def _check(epsilon: float, update: str) -> None:
    if not 0 < epsilon < 1:
        raise ValueError(f"`epsilon` must lie between 0 and 1, both excluded, got {epsilon}")
    if update not in UPDATES:
        raise ValueError(f"`update` must be one of {', '.join(map(repr, UPDATES))}, got {update!r}")


def _parts(output: PyTree) -> tuple[Any, PyTree]:
    """The halting logit and what is averaged.

    Raises:
      ValueError: one of them is missing, or their axes do not fit.
    """
    if not isinstance(output, dict) or HALTING not in output or len(output) < 2:
        has = (
            f"the keys {sorted(output)}"
            if isinstance(output, dict)
            else f"a {type(output).__name__}"
        )
        raise ValueError(
            f"`step` must give a dict with {HALTING!r} and what is averaged beside it, got {has}"
        )
    halting = output[HALTING]
    values = {name: value for name, value in output.items() if name != HALTING}
    for leaf in jax.tree.leaves(values):
        if leaf.shape[: halting.ndim] != halting.shape:
            raise ValueError(
                f"`step` gives a halting logit of shape {halting.shape} and beside it an entry of shape {leaf.shape}"
            )
    return halting, values
