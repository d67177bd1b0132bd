"""`dx.build`: a model from an embedding, a block and a head."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.checks import batch_size, described, positive_integer, shapes
from dynexit.core.data import Tokens
from dynexit.core.shapes import Array, PyTree
from dynexit.core.stacking import stack
from dynexit.core.types import Model, Step
from dynexit.engine.run import run_all
from dynexit.engine.steps import stacked_step, switched_step, tied_step
from dynexit.layers.linen import block_names
from dynexit.models.adapters.kinds import part
from dynexit.models.adapters.part import Part

Weights = Literal["stacked", "tied", "list"]
WEIGHTS = ("stacked", "tied", "list")
ROWS = 2  # of an example that is made from a shape
HEAD = 2**31 - 1  # folded into a row's key for a head's dropout; the block's key is split


class Stage(NamedTuple):
    """Blocks that keep the state's shape: one part for all of them, or one for each."""

    blocks: tuple[Part, ...]
    heads: tuple[Part, ...]
    depth: int


def build(
    embed: Any,
    block: Any,
    head: Any,
    depth: int | Sequence[int],
    weights: Weights = "stacked",
    inputs: Any = None,
) -> Model:
    """A model from functions or modules: state_0 = embed(x), state_{i+1} = block_i(state_i),
    output_i = head_i(state_{i+1}).

    Each of the three parts is of one of these kinds, which may be mixed:

    - a pair `(init, apply)`, `init(key) -> params`, `apply(params, x) -> y`; or a function `f(x) ->
      y` without weights;
    - a Linen module, an instance; `inputs` must be given. A module bound to variables
      (`module.bind(variables)`) keeps these;
    - an NNX class or a constructor that takes `rngs`: `lambda rngs: nnx.Linear(8, 8, rngs=rngs)`.
      An instance keeps its weights;
    - an equinox class or a constructor that takes `key`: `lambda key: eqx.nn.Linear(8, 8,
      key=key)`. It is applied to one row at a time; an instance keeps its weights.

    Args:
      embed: inputs, leaves `[b, ...]`, to the state, leaves `[b, ...]`.
      block: state to state; a list of N of them where blocks differ or have weights already.
      head: state to the output of an exit, leaves `[b, ...]`; one with weights of its own for every
        exit, or a list of N.
      depth: N; or one for each stage, where the state changes its shape. Then `block` is a list
        with one entry a stage, and `head` is one part or such a list.
      weights: "stacked": the N blocks are alike and their weights have a leading `[N]`; "list":
        blocks may differ, and no weight is copied, but the program grows with N; "tied": one block
        and one head are iterated.
      inputs: the shape of one input, float32; or `dx.Tokens`; or an example batch (shapes suffice).
        Where it is given, the parts are checked against each other here.

    Returns:
      `Model`. Parameters are `{"embed": ..., "blocks": ...}`, blocks of `{"block": ..., "head":
      ...}`: one such dict, or a list of N with "list", and a list with one entry a stage where
      `depth` is a sequence. `init(key)` can be traced where the parts' can.

    Raises:
      TypeError, ValueError: a part of no known kind, one that has state which a call changes (batch
        statistics), lists of other lengths than `depth`, `inputs` missing for a Linen module, parts
        that do not fit one another; the argument is named.

    Example:
      >>> import dynexit as dx
      >>> dense = lambda n: lambda key: jax.random.normal(key, (n, n)) / n
      >>> block = dense(4), lambda p, h: h + jnp.tanh(h @ p)
      >>> model = dx.build(lambda x: x, block, (dense(4), lambda p, h: h @ p), depth=3)
      >>> params = model.init(jax.random.key(0))
      >>> dx.run_all(model.steps(params), model.embed(params, jnp.ones((2, 4)))).shape
      (3, 2, 4)
    """
    if weights not in WEIGHTS:
        raise ValueError(
            f"`weights` must be one of {', '.join(map(repr, WEIGHTS))}, got {weights!r}"
        )
    several = isinstance(depth, (tuple, list))
    first, stages = part(embed, "embed"), _stages(block, head, depth, weights)
    example = None if inputs is None else _example(inputs)
    parts = [first, *(p for stage in stages for p in (*stage.blocks, *stage.heads))]
    if example is None and any(p.traced for p in parts):
        raise ValueError(
            "`inputs` must be given for a Linen module, whose weights get their shapes from an "
            "input: the shape of one input, or an example batch"
        )

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 1 + len(stages))
        params, state = _initial(first, keys[0], example)
        blocks = []
        for stage, stage_key in zip(stages, keys[1:], strict=True):
            found, state = _initial_stage(stage, weights, stage_key, state)
            blocks.append(found)
        return {"embed": params, "blocks": blocks if several else blocks[0]}

    def model(on: "Mode", training: Callable[[Array], Model] | None = None) -> Model:
        def steps(params: PyTree) -> Any:
            blocks = params["blocks"] if several else [params["blocks"]]
            found = tuple(
                _step(stage, weights, on, p) for stage, p in zip(stages, blocks, strict=True)
            )
            return found if several else found[0]

        depths = tuple(stage.depth for stage in stages)
        embed = lambda params, x: on.embed(first, params["embed"], x)
        names = block_names(sum(depths))
        n = depths if several else depths[0]
        return Model(init, embed, steps, n, names, training=training)

    random = any(p.train is not None for p in parts)
    made = model(_INFERENCE, (lambda key: model(_training(key))) if random else None)
    params = jax.eval_shape(lambda: init(jax.random.key(0)))
    if example is not None:
        run = lambda p, x: run_all(made.steps(p), made.embed(p, x), made.depth)
        jax.eval_shape(run, params, example)
    return made


def _stages(block: Any, head: Any, depth: Any, weights: str) -> list[Stage]:
    if not isinstance(depth, (tuple, list)):
        n = positive_integer(depth, "depth")
        return [Stage(_parts(block, "block", n, weights), _parts(head, "head", n, weights), n)]
    if not isinstance(block, list) or len(block) != len(depth):
        came = f"{len(block)} entries" if isinstance(block, list) else type(block).__name__
        raise ValueError(
            f"`block` must be a list with one entry for each of the {len(depth)} stages of "
            f"`depth`, got {came}"
        )
    heads = head if isinstance(head, list) else [head] * len(depth)
    if len(heads) != len(depth):
        raise ValueError(
            f"`head` must have one entry for each of the {len(depth)} stages, got {len(heads)}"
        )
    found = []
    for k, (b, h, n) in enumerate(zip(block, heads, depth, strict=True)):
        n = positive_integer(n, f"depth[{k}]")
        at = "" if not isinstance(head, list) else f"[{k}]"
        blocks = _parts(b, f"block[{k}]", n, weights)
        found.append(Stage(blocks, _parts(h, f"head{at}", n, weights), n))
    return found


def _parts(value: Any, name: str, depth: int, weights: str) -> tuple[Part, ...]:
    """One part, or one for each block."""
    if not isinstance(value, list):
        return (part(value, name),)
    if weights == "tied":
        raise ValueError(f"`{name}` must be one part where `weights` is 'tied', got a list")
    if len(value) != depth:
        raise ValueError(
            f"`{name}` must have one entry for each of {depth} blocks, got {len(value)}"
        )
    found = tuple(part(v, f"{name}[{k}]") for k, v in enumerate(value))
    for k, p in enumerate(found):
        if weights == "stacked" and p.apply != found[0].apply:
            raise ValueError(
                f"`{name}[{k}]` must differ from `{name}[0]` in the values of its weights alone; "
                "blocks that differ in more take weights='list'"
            )
    return found


def _example(inputs: Any) -> PyTree:
    if isinstance(inputs, Tokens):
        if inputs.length is None:
            raise ValueError(
                "`inputs` must have a length, got dx.Tokens(length=None); pass an example batch"
            )
        return jax.ShapeDtypeStruct((ROWS, inputs.length), jnp.int32)
    if isinstance(inputs, (tuple, list)) and all(isinstance(n, int) for n in inputs):
        return jax.ShapeDtypeStruct((ROWS, *inputs), jnp.float32)
    batch_size(inputs, "inputs")
    return shapes(inputs)


def _initial(p: Part, key: Array, example: PyTree) -> tuple[PyTree, PyTree]:
    """Parameters, and the shapes of what the part makes of the example."""
    params = p.init(key, example)
    return params, _after(p, params, example)


def _after(p: Part, params: PyTree, example: PyTree) -> PyTree:
    return None if example is None else jax.eval_shape(p.apply, params, example)


def _initial_stage(stage: Stage, weights: str, key: Array, state: PyTree) -> tuple[PyTree, PyTree]:
    keys = jax.random.split(key, 2)
    one = jax.eval_shape(lambda: stage.blocks[0].init(jax.random.key(0), state))
    after = _after(stage.blocks[0], one, state)
    if stage.depth > 1 and described(after) != described(state):
        raise ValueError(
            f"`block` must keep the state of {stage.depth} blocks, {described(state)}, got "
            f"{described(after)}; a block that changes it is a stage of depth 1"
        )
    if weights == "tied":
        block, head = stage.blocks[0].init(keys[0], state), stage.heads[0].init(keys[1], after)
        return {"block": block, "head": head}, after
    stacked = weights == "stacked"
    block = _initial_each(stage.blocks, keys[0], state, stage.depth, stacked)
    head = _initial_each(stage.heads, keys[1], after, stage.depth, stacked)
    if stacked:
        return {"block": block, "head": head}, after
    return [{"block": b, "head": h} for b, h in zip(block, head, strict=True)], after


def _initial_each(
    parts: tuple[Part, ...], key: Array, example: PyTree, depth: int, stacked: bool
) -> Any:
    """Parameters of every block: stacked, or a list."""
    keys = jax.random.split(key, depth)
    if stacked and len(parts) == 1:
        return jax.vmap(lambda k: parts[0].init(k, example))(keys)
    parts = parts * depth if len(parts) == 1 else parts
    found = [p.init(k, example) for p, k in zip(parts, keys, strict=True)]
    return stack(found) if stacked else found


class Mode(NamedTuple):
    """How parts become the three functions of a model: at inference, or in training."""

    embed: Callable[[Part, PyTree, PyTree], PyTree]
    block: Callable[[Part], Callable[[PyTree, PyTree], PyTree]]
    head: Callable[[Part], Callable[[PyTree, PyTree], PyTree]]


@dataclasses.dataclass(frozen=True)
class _Apply:
    apply: Callable[[PyTree, Any], Any]
    name: str

    def __call__(self, params: PyTree, state: Any) -> Any:
        return self.apply(params[self.name], state)


_INFERENCE = Mode(
    lambda p, params, x: p.apply(params, x),
    lambda p: _Apply(p.apply, "block"),
    lambda p: _Apply(p.apply, "head"),
)


def _step(stage: Stage, weights: str, mode: Mode, params: PyTree) -> Step:
    blocks, heads = [mode.block(p) for p in stage.blocks], [mode.head(p) for p in stage.heads]
    if weights == "list":
        return switched_step(blocks, heads, params)
    if weights == "tied":
        return dataclasses.replace(tied_step(blocks[0], heads[0], params), depth=stage.depth)
    if not jax.tree.leaves(params):
        raise ValueError(
            "`weights` must be 'tied' or 'list' where neither `block` nor `head` has weights"
        )
    return stacked_step(blocks[0], heads[0], params)


# Training: the state is {"state": ..., "key": uint32 [b, k]}; every row has a key of its own, which
# its blocks split one after the other, so that a row's dropout does not depend on other rows.


@dataclasses.dataclass(frozen=True)
class _TrainedBlock:
    part: Part

    def __call__(self, params: PyTree, carried: PyTree) -> PyTree:
        both = jax.vmap(jax.random.split)(jax.random.wrap_key_data(carried["key"]))
        state = _trained(self.part, params["block"], carried["state"], both[:, 0])
        return {"state": state, "key": jax.random.key_data(both[:, 1])}


@dataclasses.dataclass(frozen=True)
class _TrainedHead:
    part: Part

    def __call__(self, params: PyTree, carried: PyTree) -> PyTree:
        fold = jax.vmap(lambda key: jax.random.fold_in(key, HEAD))
        keys = fold(jax.random.wrap_key_data(carried["key"]))
        return _trained(self.part, params["head"], carried["state"], keys)


def _trained(p: Part, params: PyTree, x: Any, keys: Array) -> Any:
    return p.apply(params, x) if p.train is None else p.train(params, x, keys)


def _training(key: Array) -> Mode:
    def embed(p: Part, params: PyTree, x: Any) -> PyTree:
        rows = jnp.arange(batch_size(x, "inputs"))
        both = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row)))(rows)
        state = _trained(p, params, x, both[:, 0])
        return {"state": state, "key": jax.random.key_data(both[:, 1])}

    return Mode(embed, _TrainedBlock, _TrainedHead)
