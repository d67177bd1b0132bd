"""Notation and the types that all packages share.

All docstrings use this notation: `B` batch, `L` sequence length, `D` width, `N` depth in blocks,
`E` exits, `C` classes, `V` vocabulary, `T` tile rows, `S` slots, `M` queue length, lower-case `b`
any number of rows. `depth` counts blocks executed (1..N); `exit` is an index 0..E-1. Units:
seconds, FLOPs (a multiply-add is 2), bytes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.tree_util import Partial

from dynexit.core.data import Source
from dynexit.core.labels import exact
from dynexit.core.shapes import (
    AnyArray,
    Array,
    Bool,
    ExitRows,
    Float,
    HostArray,
    Int,
    Key,
    Num,
    PyTree,
    Rows,
    Shaped,
    Size,
)

Labels: TypeAlias = Num[Array, "B ..."]
Metrics: TypeAlias = dict[str, Float[Array, ""]]
Progress: TypeAlias = Float[Array, ""]
Frozen: TypeAlias = Callable[[str], bool] | tuple[str, ...]


def _as_partial(f: Any) -> Any:
    """Wraps a function so that it is a pytree; placeholders of `jax.tree` are unchanged."""
    return Partial(f) if callable(f) and not isinstance(f, Partial) else f


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """One block and its exit, as a pair of pure functions.

    A `Step` is a pytree, so it may be an argument of `jax.jit`. Rows must be independent of each
    other (no batch statistics); `dx.check_row_independence` tests that.

    Args:
      select: `select(i) -> weights`, the weights of block i; called once per block and not once per
        tile. `i` may be traced.
      apply: `apply(weights, i, state) -> (state, output)` on any number of rows; leaves of state
        and output are `[b, ...]`. If `run_until` is called with `side`, then `apply(weights, i,
        state, rows, side) -> (state, output, side)`.
      blocks: number of blocks that one step executes (exits need not follow every block).
      depth: number of blocks that have weights, or None for no limit; the engine raises an error
        for a greater depth.

    Example:
      >>> import dynexit as dx, jax.numpy as jnp
      >>> step = Step(lambda i: i + 1, lambda w, i, h: (h + w, 10 * h))
      >>> dx.run_all(step, jnp.zeros(1, jnp.int32), depth=3)[:, 0].tolist()
      [0, 10, 30]
    """

    select: Callable[[Int[Array, ""]], PyTree]
    apply: Callable[..., tuple[PyTree, ...]]
    blocks: int = dataclasses.field(default=1, metadata={"static": True})
    depth: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "select", _as_partial(self.select))
        object.__setattr__(self, "apply", _as_partial(self.apply))


class Memory(NamedTuple):
    """What a criterion remembers of each row between exits.

    Attributes:
      score: of `Criterion.score`, leaves `[b, ...]`.
      decide: of `Criterion.decide`, leaves `[b, ...]`.
    """

    score: PyTree
    decide: PyTree


def no_memory(batch: Size, output: PyTree = None) -> tuple[()]:
    """The memory of a function that remembers nothing."""
    return ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Criterion:
    """When a row exits, as two pure functions: a score of each exit, and a decision on the score.

    Itself a pytree: thresholds are leaves of `decide`, so changing them never recompiles. Since
    scores hold no threshold, stored scores are enough to compare thresholds.

    Args:
      score: `score(i, output, memory) -> (score, memory)` at exit i (int32, scalar; `[b]` where
        `run_stream` runs a tied step). A score is a pytree of a few numbers a row, leaves `[b]` or
        `[b, small]`; it holds no threshold.
      decide: `decide(i, score, memory) -> (exit, memory)`, exit bool `[b]`.
      init_score: `init_score(batch, output) -> memory` before the first exit, leaves `[batch,
        ...]`; `output` has the shapes of one exit's output (`jax.ShapeDtypeStruct`, leaves `[batch,
        ...]`).
      init_decide: `init_decide(batch) -> memory`, leaves `[batch, ...]`.
      exits: the number of exits that the thresholds are meant for, or None for any; the engine
        checks it.

    Example:
      >>> import dynexit as dx
      >>> import jax.numpy as jnp
      >>> score = lambda i, output, memory: (output, memory)
      >>> large = dx.Criterion(score, lambda i, score, memory: (score > 2.5, memory))
      >>> dx.replay(large, jnp.array([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]])).exit.tolist()
      [2, 0]
    """

    score: Callable[[Int[Array, "..."], Rows, PyTree], tuple[Rows, PyTree]]
    decide: Callable[[Int[Array, "..."], Rows, PyTree], tuple[Bool[Array, "b"], PyTree]]
    init_score: Callable[[Size, PyTree], PyTree] = no_memory
    init_decide: Callable[[Size], PyTree] = no_memory
    exits: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        for name in ("score", "decide", "init_score", "init_decide"):
            object.__setattr__(self, name, _as_partial(getattr(self, name)))

    def init(self, batch: Size, output: PyTree) -> Memory:
        """Both memories before the first exit; `output` has the shapes of one exit's output."""
        return Memory(self.init_score(batch, output), self.init_decide(batch))

    def update(
        self, i: Int[Array, "..."], output: Rows, memory: Memory
    ) -> tuple[Bool[Array, "B"], Memory]:
        """Scores one exit and decides on it: `(exit [b] bool, memory)`."""
        score, scored = self.score(i, output, memory.score)
        exit, decided = self.decide(i, score, memory.decide)
        return exit, Memory(scored, decided)


class Halted(NamedTuple):
    """The result of a run with exits, per row, and the number of rows executed.

    Attributes:
      output: leaves `[B, ...]`, the output at the row's exit.
      exit: int32 `[B]`, index of the exit taken, 0..E-1.
      exit_depth: int32 `[B]`, blocks executed for the row, 1..N.
      state: leaves `[B, ...]`, the row's state at its exit; for a sequence of stages a tuple with
        one entry per stage; None if it was not kept.
      memory: the criterion's `Memory`, leaves `[B, ...]`.
      nan_exits: int32 `[B]`, number of exits at which the row's output had a NaN; a row does not
        exit there. A NaN in an entry with deferred readout (`dx.engine.deferred_readout`) counts
        once and does not prevent the exit.
      rows_executed: rows x steps executed, padding rows included: int32 `[]`, or int64 where the
        shapes of the run allow for 2^31 or more, also if JAX's 64-bit types are not enabled (take
        `int(...)` or numpy then). It is exact.
      side: the `side` of `run_until` after the last step; None if there is none.
    """

    output: Rows
    exit: Int[Array, "B"]
    exit_depth: Int[Array, "B"]
    state: Rows
    memory: PyTree
    nan_exits: Int[Array, "B"]
    rows_executed: Int[Array, ""]
    side: PyTree = None


class Model(NamedTuple):
    """A network as pure functions of plain dicts of arrays.

    Attributes:
      init: `init(key) -> params`, a plain dict; the key is consumed.
      embed: `embed(params, inputs [B, ...]) -> state`, leaves `[B, ...]`.
      steps: `steps(params) -> Step`, or a tuple of steps if stages differ in shape.
      depth: number of blocks N; a tuple with the blocks of each stage if `steps` returns a tuple.
      names: a stable name for every block's output, `len(names) == N`, e.g. `("block00",
        "block01")`.
      decoder: what `dx.decoding` needs of an autoregressive model, hashable; None for a model that
        cannot decode. `dx.models.RecurrentDepth` sets it.
      training: `training(key) -> Model`, the model with dropout, for the same parameters; the key
        is consumed. None where a model in training is the same.

    Example:
      >>> import dynexit as dx, jax.numpy as jnp
      >>> steps = lambda params: dx.stacked_step(lambda p, h: h + p, lambda p, h: h, params)
      >>> model = Model(lambda key: jnp.ones(3), lambda params, x: x, steps, 3, ("a", "b", "c"))
      >>> params = model.init(jax.random.key(0))
      >>> state = model.embed(params, jnp.zeros(2))
      >>> dx.run_all(model.steps(params), state, model.depth).tolist()
      [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    """

    init: Callable[[Key[Array, ""]], PyTree]
    embed: Callable[[PyTree, Rows], Rows]
    steps: Callable[[PyTree], Any]
    depth: int | tuple[int, ...]
    names: tuple[str, ...]
    decoder: Any = None
    training: "Callable[[Key[Array, '']], Model] | None" = None


def wrapped_training(
    model: Model, wrap: Callable[[Model], Model]
) -> Callable[[Key[Array, ""]], Model] | None:
    """`Model.training` of `wrap(model)`, for a function that makes a model from another one."""
    training = model.training
    return None if training is None else lambda key: wrap(training(key))


class Carried(NamedTuple):
    """A loss over slots whose rows stay for several updates.

    A finished row is replaced in its slot by a row of the batch.

    Attributes:
      begin: `begin(model, params, inputs, labels) -> carry`, the slots before the first update, all
        of them empty; only the shapes of inputs and labels are read.
      loss: `loss(model, params, carry, inputs, labels, key, progress) -> (loss [B], metrics,
        carry)`; row b of the batch is for slot b and is dropped if that slot is occupied; the key
        is consumed.
    """

    begin: Callable[[Model, PyTree, Rows, Labels], PyTree]
    loss: Callable[
        [Model, PyTree, PyTree, Rows, Labels, Key[Array, ""], Progress],
        tuple[Float[Array, "B"], Metrics, PyTree],
    ]


class Fit(NamedTuple):
    """Statistics that a method fits on the calibration split first, such as temperatures.

    The split is read in passes, batch by batch, and no output is kept.

    Attributes:
      begin: `begin(exits) -> state`, numpy arrays with leaves `[E, ...]`.
      measure: `measure(state, i, output, labels) -> terms`, leaves `[b, ...]`, from exit i's
        output; traced.
      advance: `advance(state, sums) -> (state, finished)` after each pass, on the host; sums are
        the terms summed over the rows that count, float64 `[E, ...]`.
      finish: `finish(state) -> (fitted, remarks)`: a pytree of arrays, and sentences for the
        log (rows that were left out).
    """

    begin: Callable[[int], PyTree]
    measure: Callable[[PyTree, Int[Array, ""], Rows, Labels], Rows]
    advance: Callable[[PyTree, PyTree], tuple[PyTree, bool]]
    finish: Callable[[PyTree], tuple[PyTree, tuple[str, ...]]]


class Candidates(NamedTuple):
    """The operating points that calibration chooses from.

    `dx.calibration.levels` makes them from a list of thresholds.

    Attributes:
      full: `full(exits, fitted) -> operating_point` at which no row exits early. It is always among
        the candidates, and its criterion's score is the one that is recorded.
      points: `points(records, fitted, costs) -> operating points`, leaves `[K, ...]`, from the
        `dx.calibration.Records` of the calibration split and cumulative costs, float64 `[E]` in
        FLOPs per row. The criteria of all points have the same score.
      fit: what is fitted first, see `Fit`; without it `fitted` is `{}`.
    """

    full: Callable[[int, PyTree], PyTree]
    points: Callable[[Any, PyTree, Float[HostArray, "E"]], PyTree]
    fit: Fit | None = None


class Method(NamedTuple):
    """The part of a published system beside the model: training, exits, and operating points.

    Attributes:
      objective: `objective(outputs, labels, progress) -> (loss [B], metrics)`; leaves of outputs
        `[E, B, ...]`; `progress` is the fraction of training done, float32 `[]` in 0..1; metrics a
        flat dict of float32 `[]`.
      criterion: `criterion(operating_point) -> Criterion`; an operating point is a pytree of arrays
        (thresholds, temperatures).
      candidates: see `Candidates`.
      predict: `predict(output) -> answer`, int32 `[b]` where labels are classes, or `[b, ...]` with
        one for each place of a row, from one exit's output.
      loss: in place of the objective, for methods that do not train on all exits of one run (a
        sampled number of steps, segments): `loss(model, params, inputs, labels, key, progress) ->
        (loss [B], metrics)`; the key is consumed.
      score: `score(prediction, labels) -> [b]` in 0..1, how right each row is; accuracy is its mean
        over the rows that have a label. By default all or nothing; `dynexit.core.labels.share`
        counts places, for language models; real labels need one of their own.
      carried: in place of objective and loss, see `Carried`; training keeps the carry from update
        to update, and in checkpoints.
      frozen: which parameters training leaves as they are: prefixes of their paths, `("trunk",)`,
        or `frozen(path) -> bool`. They get no gradient, no optimizer state and no weight decay.
    """

    objective: Callable[[ExitRows, Labels, Progress], tuple[Float[Array, "B"], Metrics]] | None
    criterion: Callable[[PyTree], Criterion]
    candidates: Candidates
    predict: Callable[[Rows], Labels]
    loss: (
        Callable[
            [Model, PyTree, Rows, Labels, Key[Array, ""], Progress],
            tuple[Float[Array, "B"], Metrics],
        ]
        | None
    ) = None
    score: Callable[[Any, Any], Shaped[AnyArray, "B"]] = exact
    carried: Carried | None = None
    frozen: Frozen = ()


class Experiment(NamedTuple):
    """A model with its method and data.

    Attributes:
      model, method: see `Model` and `Method`.
      train, calibration, test: the three splits, disjoint.
      augment: `augment(key, inputs) -> inputs` on the device, in training only; the key is
        consumed. None for no augmentation.
      prepare: `prepare(inputs) -> inputs` on the device, in training and evaluation, e.g. scaling
        of bytes to floats. None for no preparation.
      classes: names of the classes, for reports; may be empty.
    """

    model: Model
    method: Method
    train: Source
    calibration: Source
    test: Source
    augment: Callable[[Key[Array, ""], Rows], Rows] | None = None
    prepare: Callable[[Rows], Rows] | None = None
    classes: tuple[str, ...] = ()
