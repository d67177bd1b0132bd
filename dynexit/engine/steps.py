"""Steps from a block and an exit head, with stacked, switched or tied weights."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax import lax
from jax.tree_util import Partial

from dynexit.core.checks import describe, positive_integer
from dynexit.core.shapes import PyTree, Rows
from dynexit.core.stacking import length, refuse_other_leaves, take
from dynexit.core.types import Step
from dynexit.engine.deferred import deferred_parts, deferred_readout

Block: TypeAlias = Callable[[PyTree, Rows], Rows]  # `(params, state)` -> state, or output


@dataclasses.dataclass(frozen=True)
class Run:
    """Block, then head. Equal blocks and heads make equal steps, which compile once."""

    block: Block
    head: Block

    def __call__(self, weights: PyTree, i: Any, state: Rows) -> tuple[Rows, Rows]:
        with jax.named_scope("block"):
            state = self.block(weights, state)
        with jax.named_scope("exit"):
            return state, self.head(weights, state)


@dataclasses.dataclass(frozen=True)
class _RunSeveral:
    """Several blocks with weights `[k, ...]`, then the head with the weights of the last block."""

    block: Block
    head: Block

    def __call__(self, weights: PyTree, i: Any, state: PyTree) -> tuple[PyTree, PyTree]:
        with jax.named_scope("block"):
            state, _ = lax.scan(lambda s, w: (self.block(w, s), None), state, weights)
        with jax.named_scope("exit"):
            return state, self.head(take(weights, length(weights, "weights") - 1), state)


@dataclasses.dataclass(frozen=True)
class _RunAgain:
    """One block several times with the same weights, then the head."""

    once: Run
    times: int

    def __call__(self, weights: PyTree, i: Any, state: PyTree) -> tuple[PyTree, PyTree]:
        with jax.named_scope("block"):
            state, _ = lax.scan(
                lambda s, _: (self.once.block(weights, s), None), state, None, length=self.times
            )
        with jax.named_scope("exit"):
            return state, self.once.head(weights, state)


@dataclasses.dataclass(frozen=True)
class _Around:
    """`wrap(block, weights, state)` as a block."""

    wrap: Callable[..., Any]
    block: Block

    def __call__(self, weights: PyTree, state: PyTree) -> PyTree:
        return self.wrap(self.block, weights, state)


@dataclasses.dataclass(frozen=True)
class _RunSwitched:
    """The i-th of several branches. Each closes over its own weights, so no weight is copied."""

    blocks: tuple[Block, ...]
    heads: tuple[Block, ...]

    def __call__(
        self, params: list[PyTree], _: PyTree, i: Any, state: PyTree
    ) -> tuple[PyTree, PyTree]:
        def branch(k: int) -> Callable[[PyTree], tuple[PyTree, PyTree]]:
            block, head = self.blocks[k % len(self.blocks)], self.heads[k % len(self.heads)]

            def run(state: PyTree) -> tuple[PyTree, PyTree]:
                with jax.named_scope("block"):
                    new = block(params[k], state)
                with jax.named_scope("exit"):
                    return new, head(params[k], new)

            return run

        if len(params) == 1:  # one block is tied: in a stream `i` then has one entry per row
            return branch(0)(state)
        branches = [branch(k) for k in range(len(params))]
        try:
            return lax.switch(i, branches, state)
        except TypeError:
            _refuse_unequal(branches, state)
            raise


def _refuse_unequal(branches: Sequence[Callable[[PyTree], Any]], state: PyTree) -> None:
    """Refuses branches whose results differ in structure, shape or dtype.

    Raises:
      ValueError: two branches differ; the error names the block and the leaf.
    """
    first, *others = (jax.eval_shape(branch, state) for branch in branches)
    for k, other in enumerate(others, start=1):
        for what, a, b in zip(("state", "output"), first, other, strict=True):
            if jax.tree.structure(a) != jax.tree.structure(b):
                raise ValueError(
                    f"`params[{k}]` must give {what} of the structure {jax.tree.structure(a)} of "
                    f"`params[0]`, got {jax.tree.structure(b)}"
                )
            leaves = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
            for (path, wanted), came in leaves:
                if describe(wanted) != describe(came):
                    raise ValueError(
                        f"`params[{k}]` must give {what}{jax.tree_util.keystr(path)} as "
                        f"{describe(wanted)}, as `params[0]` does, got {describe(came)}"
                    )


def _recomputed(f: Callable[..., Any], weights: PyTree, *rest: Any) -> Any:
    return jax.checkpoint(f, prevent_cse=False)(weights, *rest)


def _read_again(read: Callable[[PyTree], PyTree], state: PyTree) -> PyTree:
    return jax.checkpoint(read, prevent_cse=False)(state)


def whole(params: PyTree, i: Any) -> PyTree:
    """`select` of a step whose blocks have all weights."""
    return params


def _nothing(i: Any) -> PyTree:
    return ()


def stacked_step(block: Block, head: Block, params: PyTree, blocks: int = 1) -> Step:
    """A step over weights stacked on a leading axis `[N]`; `select(i)` is a dynamic index.

    The index copies the weights of one block per step. The cost is negligible for a batch, but not
    at batch size 1 with wide blocks; `switched_step` copies no weights.

    Args:
      block: `block(p, state) -> state`, leaves of state `[b, ...]`; p has the leaves of `params`
        without `[N]`.
      head: `head(p, state) -> output`, leaves `[b, ...]`.
      params: leaves `[N, ...]`.
      blocks: blocks per step; there is an exit after each `blocks`-th block, whose head has the
        weights of that block.

    Returns:
      A `Step` for depths of up to N.

    Raises:
      TypeError, ValueError: the leading axes differ, or `blocks` is not an integer or does not
        divide N.

    Example:
      >>> import jax.numpy as jnp, dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.ones(3))
      >>> dx.run_all(step, jnp.zeros((2, 4)), depth=3)[:, 0, 0]
      Array([1., 2., 3.], dtype=float32)
    """
    n = length(params, "params")
    if n % positive_integer(blocks, "blocks"):
        raise ValueError(f"`blocks` must divide the {n} blocks of `params`, got {blocks}")
    if blocks == 1:
        return Step(Partial(take, params), Partial(Run(block, head)), depth=n)
    grouped = jax.tree.map(lambda a: a.reshape(n // blocks, blocks, *a.shape[1:]), params)
    return Step(Partial(take, grouped), Partial(_RunSeveral(block, head)), blocks, n)


def switched_step(
    block: Block | Sequence[Block], head: Block | Sequence[Block], params: Sequence[PyTree]
) -> Step:
    """A step over a list of N weight trees, in which `lax.switch` selects the block.

    No weights are copied. The size of the compiled program grows with N.

    Args:
      block, head: as in `stacked_step`; or sequences of N functions.
      params: N trees; their shapes may differ, those of the state may not.

    Returns:
      A `Step` for depths of up to N.

    Raises:
      TypeError: a leaf of `params` is not an array.
      ValueError: `params` is empty, or `block` or `head` is a sequence of another length; when the
        step runs, the results of two blocks differ in shape.

    Example:
      >>> import jax.numpy as jnp, dynexit as dx
      >>> blocks = [lambda p, h: h + p, lambda p, h: h * p]
      >>> step = dx.switched_step(blocks, lambda p, h: h, [jnp.float32(3.0), jnp.float32(2.0)])
      >>> dx.run_all(step, jnp.ones(1))[:, 0].tolist()
      [4.0, 8.0]
    """
    params = list(params)
    if not params:
        raise ValueError("`params` must hold at least one block, got none")
    refuse_other_leaves(params, "params")
    functions: list[tuple[Any, ...]] = []
    for name, given in (("block", block), ("head", head)):
        several = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if len(several) not in (1, len(params)):
            raise ValueError(
                f"`{name}` must be one function or {len(params)}, one for each entry of `params`, "
                f"got {len(several)}"
            )
        functions.append(several)
    return Step(_nothing, Partial(_RunSwitched(*functions), params), depth=len(params))


def tied_step(block: Block, head: Block, params: PyTree, blocks: int = 1) -> Step:
    """A step with the same weights in every iteration (recurrent depth).

    `select(i)` returns `params` for every i.

    Args:
      block, head: as in `stacked_step`; p is `params` itself.
      params: any tree of arrays.
      blocks: iterations per step; there is an exit after each `blocks`-th iteration.

    Returns:
      A `Step` without a maximal depth.

    Raises:
      TypeError, ValueError: `blocks` is not an integer or is below 1, or a leaf is not an array.

    Example:
      >>> import jax.numpy as jnp, dynexit as dx
      >>> step = dx.tied_step(lambda p, h: h * p, lambda p, h: h, jnp.float32(2.0), blocks=3)
      >>> dx.run_all(step, jnp.ones(1), depth=6)[:, 0].tolist()
      [8.0, 64.0]
    """
    refuse_other_leaves(params, "params")
    once = Run(block, head)
    again = once if positive_integer(blocks, "blocks") == 1 else _RunAgain(once, blocks)
    return Step(Partial(whole, params), Partial(again), blocks)


def rematerialised(step: Step, apart: bool = False) -> Step:
    """The same step with its inner values recomputed in the backward pass.

    Only the states between blocks are stored.

    Args:
      step: any.
      apart: whether a block and its head are recomputed apart, as in `around_block`. A block of
        frozen weights, which needs no backward pass, is then not computed again for its head.

    Example:
      >>> import jax.numpy as jnp, dynexit as dx
      >>> sine = lambda p, h: jnp.sin(h * p)
      >>> step = dx.tied_step(sine, lambda p, h: h, jnp.float32(2.0), blocks=3)
      >>> again = rematerialised(step)
      >>> outputs = [dx.run_all(s, jnp.ones(1), 6) for s in (again, step)]
      >>> jnp.array_equal(*outputs)
      Array(True, dtype=bool)
    """
    if parts := deferred_parts(step):
        return deferred_readout(rematerialised(parts[0], apart), _read_again, parts[1])
    return around_block(step, _recomputed, apart)


def recomputed_part(step: Step) -> Step | None:
    """The step that `rematerialised` was given, or None where this step is not from it."""
    if not isinstance(step.apply, Partial) or step.apply.func is not _recomputed:
        return None
    return dataclasses.replace(step, apply=step.apply.args[0])


def around_block(step: Step, wrap: Callable[..., Any], apart: bool = False) -> Step:
    """The same step with a function around its block.

    Args:
      step: any.
      wrap: `wrap(f, weights, *rest)`, hashable, which calls `f(weights, *rest)` and returns what it
        returns, the state first. `f` is `Step.apply`; or `block(weights, state) -> state`, if one
        step iterates a tied block, so that `every_iteration` still takes it apart.
      apart: whether the block and the head of a step of one block get one `wrap` each, with
        `head(weights, state) -> output`, so that other transforms still take the step apart.

    Example:
      >>> import jax.numpy as jnp, dynexit as dx
      >>> step = dx.tied_step(lambda p, h: h * p, lambda p, h: h, jnp.float32(2.0), blocks=3)
      >>> halved = around_block(step, lambda f, weights, *rest: f(weights / 2, *rest))
      >>> dx.run_all(halved, jnp.ones(1), 3)[:, 0].tolist()
      [1.0]
    """
    if parts := deferred_parts(step):
        return deferred_readout(around_block(parts[0], wrap, apart), parts[1])
    run = step.apply.func if isinstance(step.apply, Partial) else None
    if isinstance(run, _RunAgain):
        once = Run(_Around(wrap, run.once.block), run.once.head)
        return dataclasses.replace(step, apply=Partial(_RunAgain(once, run.times)))
    if apart and isinstance(run, Run):
        both = Run(_Around(wrap, run.block), _Around(wrap, run.head))
        return dataclasses.replace(step, apply=Partial(both))
    return dataclasses.replace(step, apply=Partial(wrap, step.apply))


def every_iteration(step: Step) -> Step:
    """The same weight-tied network with an exit after every iteration.

    Training uses it for a step of several iterations.

    Args:
      step: from `tied_step`, with any `blocks`; any other step with one block per step is returned
        unchanged.

    Returns:
      A `Step` with one block per step.

    Raises:
      ValueError: the step has several blocks and is not from `tied_step`.

    Example:
      >>> import jax.numpy as jnp, dynexit as dx
      >>> step = dx.tied_step(lambda p, h: h * p, lambda p, h: h, jnp.float32(2.0), blocks=3)
      >>> dx.run_all(dx.engine.every_iteration(step), jnp.ones(1), depth=3)[:, 0].tolist()
      [2.0, 4.0, 8.0]
    """
    if step.blocks == 1:
        return step
    if parts := deferred_parts(step):
        return deferred_readout(every_iteration(parts[0]), parts[1])
    again = step.apply.func if isinstance(step.apply, Partial) else None
    if not isinstance(again, _RunAgain):
        raise ValueError(
            "`step` must be from `tied_step` or have 1 block per step, got another step of "
            f"{step.blocks} blocks"
        )
    return Step(step.select, Partial(again.once))
