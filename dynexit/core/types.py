"""Notation and the few types that every floor shares.

Notation, used by every docstring: `B` batch, `L` sequence length, `D` width, `N` depth in blocks,
`E` exits, `C` classes, `V` vocabulary, `T` tile rows, `S` slots, `M` queue length, lower-case `b`
any number of rows. `depth` counts blocks executed (1..N); `exit` is an index 0..E-1. Units:
seconds, FLOPs (a multiply-add is 2), bytes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.tree_util import Partial

from dynexit.core.labels import exact

Array = jax.Array
PyTree = Any


def _as_partial(f: Any) -> Any:
    """Wraps a plain function so that it may be part of a pytree; leaves placeholders of tree
    transformations alone.
    """
    return Partial(f) if callable(f) and not isinstance(f, Partial) else f


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """One block and its exit, as a pair of pure functions; itself a pytree, so it may be an
    argument of `jax.jit`.

    The one law: rows are independent of each other (no batch statistics);
      `dx.check_row_independence` tests it.

    Args:
      select: `select(i) -> weights`, block i's weights; called once per block and not once per
        tile. `i` may be traced.
      apply: `apply(weights, i, state) -> (state, output)` runs the rows it is given; leaves of
        state and output are `[b, ...]`. Where `run_until` is given a `side`, `apply(weights, i,
        state, rows, side) -> (state, output, side)`.
      blocks: how many blocks of depth one step executes (exits need not follow every block).
      depth: blocks that there are weights for, or None for any number; the engine refuses to go
        deeper.
    """

    select: Callable[[Any], PyTree]
    apply: Callable[..., tuple[PyTree, ...]]
    blocks: int = dataclasses.field(default=1, metadata={"static": True})
    depth: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self):
        object.__setattr__(self, "select", _as_partial(self.select))
        object.__setattr__(self, "apply", _as_partial(self.apply))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Criterion:
    """When a row leaves, as a pair of pure functions; itself a pytree: thresholds are leaves, so
    changing them never recompiles.

    Args:
      init: `init(batch) -> memory`, leaves `[batch, ...]`; what the criterion remembers of each row
        between exits.
      update: `update(i, output, memory) -> (halt [b] bool, memory)` at exit i (int32, scalar; `[b]`
        where `run_stream` runs a tied step).
      exits: the number of exits that the thresholds are meant for, or None for any; the engine
        checks it.
      templated: if true, `init(batch, output)` also gets the shapes of the output
        (`jax.ShapeDtypeStruct`, leaves `[batch, ...]`).
    """

    init: Callable[..., PyTree]
    update: Callable[[Any, PyTree, PyTree], tuple[Array, PyTree]]
    exits: int | None = dataclasses.field(default=None, metadata={"static": True})
    templated: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self):
        object.__setattr__(self, "init", _as_partial(self.init))
        object.__setattr__(self, "update", _as_partial(self.update))


class Halted(NamedTuple):
    """What a run with exits returns, row by row, and the account of the work.

    Attributes:
      output: leaves `[B, ...]`, what the row's exit read.
      exit: int32 `[B]`, index of the exit taken, 0..E-1.
      exit_depth: int32 `[B]`, blocks executed for the row, 1..N.
      state: leaves `[B, ...]` as the row left it; for a sequence of stages a tuple with one entry a
        stage; None where it was not kept.
      memory: the criterion's memory, leaves `[B, ...]`.
      nan_exits: int32 `[B]`, exits at which the row's output held a NaN; a NaN means "do not
        leave". One among entries that are read late (`dx.engine.deferred_readout`) counts once and holds
        no row back.
      rows_executed: int32 `[]`, rows x steps that really ran, padding included.
      side: what the steps made of `run_until`'s `side`; None without one.
    """

    output: PyTree
    exit: Array
    exit_depth: Array
    state: PyTree
    memory: PyTree
    nan_exits: Array
    rows_executed: Array
    side: PyTree = None


class Model(NamedTuple):
    """What a backbone gives: pure functions of plain dicts of arrays.

    Attributes:
      init: `init(key) -> params`, a plain dict; the key is consumed.
      embed: `embed(params, inputs [B, ...]) -> state`, leaves `[B, ...]`.
      steps: `steps(params) -> Step`, or a tuple of steps where stages differ in shape.
      depth: blocks N; a tuple of blocks per stage where `steps` gives a tuple.
      names: a stable name for every block's output, `len(names) == N`, e.g. `("block00",
        "block01")`.
    """

    init: Callable[[Array], PyTree]
    embed: Callable[[PyTree, PyTree], PyTree]
    steps: Callable[[PyTree], Any]
    depth: int | tuple[int, ...]
    names: tuple[str, ...]


class Carried(NamedTuple):
    """A loss over slots whose rows stay for several updates: a row that is done gives its slot to a
    new one.

    Attributes:
      begin: `begin(model, params, inputs, labels) -> carry`, the slots before the first update, all
        of them free; inputs and labels tell shapes alone.
      loss: `loss(model, params, carry, inputs, labels, key, progress) -> (loss [B], metrics,
        carry)`; the batch offers each slot a row, and one that is not taken is dropped; the key is
        consumed.
    """

    begin: Callable[[Model, PyTree, PyTree, Array], PyTree]
    loss: Callable[
        [Model, PyTree, PyTree, PyTree, Array, Array, Array], tuple[Array, dict[str, Array], PyTree]
    ]


class Method(NamedTuple):
    """What a published system adds to a model: how it is trained, when a row leaves, and between
    which operating points to choose.

    Attributes:
      objective: `objective(outputs, labels, progress) -> (loss [B], metrics)`; leaves of outputs
        `[E, B, ...]`; `progress` is the fraction of training done, float32 `[]` in 0..1; metrics a
        flat dict of float32 `[]`.
      criterion: `criterion(point) -> Criterion`; a point is a pytree of arrays (thresholds,
        temperatures).
      candidates: `candidates(outputs, labels, costs) -> points`, leaves `[K, ...]`, from
        calibration outputs `[E, M, ...]`, labels `[M]` and cumulative costs `[E]` in FLOPs per row.
      predict: `predict(output) -> class` int32 `[b]`, or `[b, ...]` with one for each place of a
        row, from one exit's output.
      loss: in place of the objective, for methods that do not train on all exits of one run (a
        sampled number of steps, segments): `loss(model, params, inputs, labels, key, progress) ->
        (loss [B], metrics)`; the key is consumed.
      score: `grade(prediction, labels) -> [b]` in 0..1, how right each row is; accuracy is its
        mean. By default all or nothing; `dynexit.core.labels.share` counts places, for language
        models.
      carried: in place of objective and loss, see `Carried`; training keeps the carry from update
        to update, and in checkpoints.
    """

    objective: Callable[[PyTree, Array, Array], tuple[Array, dict[str, Array]]] | None
    criterion: Callable[[PyTree], Criterion]
    candidates: Callable[[PyTree, Array, Array], PyTree]
    predict: Callable[[PyTree], Array]
    loss: (
        Callable[[Model, PyTree, PyTree, Array, Array, Array], tuple[Array, dict[str, Array]]]
        | None
    ) = None
    score: Callable[[Any, Any], Any] = exact
    carried: Carried | None = None


class Source(NamedTuple):
    """One split of a data set on the host: plain numpy batches `{"inputs": [b, ...], "labels":
    int32 [b]}`.

    Labels may be `[b, ...]`, and generated tasks add "steps", int32 `[b]`: how many sequential
    steps the example needs.

    Attributes:
      split: "train", "calibration" or "test".
      batch: `batch(seed, step, size) -> dict`, a pure function of its arguments: shuffled epochs
        without replacement, one after the other; a generated task draws afresh.
      examples: `examples() -> dict`, every example in a fixed order (for a generated task, a fixed
        evaluation set).
      size: number of examples per epoch (`examples()` has as many), or None where `batch` draws
        without end.
    """

    split: str
    batch: Callable[[int, int, int], dict]
    examples: Callable[[], dict]
    size: int | None


class Tokens(NamedTuple):
    """What one example looks like where it is a sequence of token ids.

    Attributes:
      vocabulary: number of tokens; ids are 0..vocabulary-1.
      length: tokens of an example, or None where it varies.
    """

    vocabulary: int
    length: int | None = None


class Dataset(NamedTuple):
    """The splits of a data set and what a model needs to know of them.

    Attributes:
      train, calibration, test: the three splits, disjoint.
      inputs: shape of one example as the model takes it, e.g. `(8, 8, 1)`, or `Tokens`.
      classes: names of the classes.
      augment, prepare: see `Experiment`.
    """

    train: Source
    calibration: Source
    test: Source
    inputs: tuple[int, ...] | Tokens
    classes: tuple[str, ...]
    augment: Callable[[Array, Array], PyTree] | None = None
    prepare: Callable[[Array], PyTree] | None = None


class Experiment(NamedTuple):
    """What is trained, calibrated and evaluated.

    Attributes:
      model, method: see `Model` and `Method`.
      train, calibration, test: the three splits, disjoint.
      augment: `augment(key, inputs) -> inputs` on the device, in training only; the key is
        consumed. None for none.
      prepare: `prepare(inputs) -> inputs` on the device, in training and evaluation (scaling of
        bytes to floats). None for none.
      classes: names of the classes, for reports; empty where there are none.
    """

    model: Model
    method: Method
    train: Source
    calibration: Source
    test: Source
    augment: Callable[[Array, Array], PyTree] | None = None
    prepare: Callable[[Array], PyTree] | None = None
    classes: tuple[str, ...] = ()
