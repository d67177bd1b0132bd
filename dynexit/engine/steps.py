"""Steps out of a block and its exit head: stacked, switched or tied weights."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.tree_util import Partial

from dynexit.core.checks import describe, positive_integer
from dynexit.core.stacking import length, refuse_other_leaves, take
from dynexit.core.types import PyTree, Step
from dynexit.engine.deferred import deferred_parts, deferred_readout

Block = Callable[[PyTree, PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class Run:
    """Block, then head; equal block and head make equal (and so equally compiled) steps."""

    block: Block
    head: Block

    def __call__(self, weights, i, state):
        state = self.block(weights, state)
        return state, self.head(weights, state)


@dataclasses.dataclass(frozen=True)
class _RunSeveral:
    """Several blocks in one step, weights `[k, ...]`, then the head with the last block's weights."""

    block: Block
    head: Block

    def __call__(self, weights, i, state):
        state, _ = lax.scan(lambda s, w: (self.block(w, s), None), state, weights)
        return state, self.head(take(weights, length(weights, "weights") - 1), state)


@dataclasses.dataclass(frozen=True)
class _RunAgain:
    """One block several times with the same weights, then the head."""

    once: Run
    times: int

    def __call__(self, weights, i, state):
        state, _ = lax.scan(
            lambda s, _: (self.once.block(weights, s), None), state, None, length=self.times
        )
        return state, self.once.head(weights, state)


@dataclasses.dataclass(frozen=True)
class _Remat:
    """A block whose inner values are computed anew in the backward pass."""

    block: Block

    def __call__(self, weights, state):
        return jax.checkpoint(self.block, prevent_cse=False)(weights, state)


@dataclasses.dataclass(frozen=True)
class _RunSwitched:
    """The i-th of several branches; each closes over its own weights, so none is copied."""

    blocks: tuple[Block, ...]
    heads: tuple[Block, ...]

    def __call__(self, params, _, i, state):
        def branch(k):
            block, head = self.blocks[k % len(self.blocks)], self.heads[k % len(self.heads)]

            def run(state):
                new = block(params[k], state)
                return new, head(params[k], new)

            return run

        if len(params) == 1:  # tied to itself: in a stream `i` is then one of each row
            return branch(0)(state)
        branches = [branch(k) for k in range(len(params))]
        try:
            return lax.switch(i, branches, state)
        except TypeError:
            _refuse_unequal(branches, state)
            raise


def _refuse_unequal(branches: Sequence[Callable], state: PyTree) -> None:
    """Refuses branches whose results differ in structure, shape or dtype.

    Raises:
      ValueError: they differ; the block and the leaf are named.
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


def _read_again(read, state):
    return jax.checkpoint(read, prevent_cse=False)(state)


def _whole(params, i):
    return params


def _nothing(i):
    return ()


def stacked_step(block: Block, head: Block, params: PyTree, blocks: int = 1) -> Step:
    """A step over weights stacked on a leading `[N]`: `select(i)` is a dynamic index.

    The index copies one block's weights per step: nothing for a batch, a cost at batch 1 and great
    width, where `switched_step` copies none.

    Args:
      block: `block(p, state) -> state`, leaves of state `[b, ...]`; p has the leaves of `params`
        without `[N]`.
      head: `head(p, state) -> output`, leaves `[b, ...]`.
      params: leaves `[N, ...]`.
      blocks: blocks per step; the exit is read after each `blocks`-th block, with that block's
        weights.

    Returns:
      A `Step` for depths of up to N.

    Raises:
      TypeError, ValueError: leading axes differ, or `blocks` is no integer or does not divide N.

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
    """A step over a list of N weight trees: `lax.switch` picks the block, no weight is copied, the
    program grows with N.

    Args:
      block, head: as in `stacked_step`; or sequences of N.
      params: N trees; their shapes may differ as long as the state's do not.

    Returns:
      A `Step` for depths of up to N.

    Raises:
      TypeError: a leaf of `params` is not an array.
      ValueError: `params` is empty, or `block` or `head` is a sequence of another length; when the
        step runs, blocks whose results differ in shape.

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
    functions = []
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
    """A step whose every iteration has the same weights (recurrent depth): `select(i)` is all of
    `params`.

    Args:
      block, head: as in `stacked_step`; p is `params` itself.
      params: any tree of arrays.
      blocks: iterations per step; the exit is read after each `blocks`-th.

    Raises:
      TypeError, ValueError: `blocks` is no integer or below 1, or a leaf is not an array.

    Example:
      >>> import jax.numpy as jnp, dynexit as dx
      >>> step = dx.tied_step(lambda p, h: h * p, lambda p, h: h, jnp.float32(2.0), blocks=3)
      >>> dx.run_all(step, jnp.ones(1), depth=6)[:, 0].tolist()
      [8.0, 64.0]
    """
    refuse_other_leaves(params, "params")
    once = Run(block, head)
    again = once if positive_integer(blocks, "blocks") == 1 else _RunAgain(once, blocks)
    return Step(Partial(_whole, params), Partial(again), blocks)


def rematerialised(step: Step) -> Step:
    """The same step with its inner values computed anew in the backward pass: only the state
    between blocks is kept.

    Example:
      >>> import jax.numpy as jnp, dynexit as dx
      >>> step = dx.tied_step(lambda p, h: jnp.sin(h * p), lambda p, h: h, jnp.float32(2.0), blocks=3)
      >>> again = rematerialised(step)
      >>> jax.tree.map(jnp.array_equal, dx.run_all(again, jnp.ones(1), 6), dx.run_all(step, jnp.ones(1), 6))
      Array(True, dtype=bool)
    """
    if parts := deferred_parts(step):
        return deferred_readout(rematerialised(parts[0]), _read_again, parts[1])
    again = step.apply.func if isinstance(step.apply, Partial) else None
    if isinstance(again, _RunAgain):  # as it is known to `every_iteration`
        once = Run(_Remat(again.once.block), again.once.head)
        return dataclasses.replace(step, apply=Partial(_RunAgain(once, again.times)))
    return dataclasses.replace(step, apply=jax.checkpoint(step.apply, prevent_cse=False))


def every_iteration(step: Step) -> Step:
    """The same weight-tied network with an exit after every iteration: for training, where exits
    may lie several apart.

    Args:
      step: of `tied_step`, with any `blocks`; another step comes back as it is where its exits are
        one block apart.

    Raises:
      ValueError: a step of several blocks that `tied_step` has not made.

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
            f"`step` must be a tied one (`tied_step`) or of 1 block, got another of {step.blocks} blocks"
        )
    return Step(step.select, Partial(again.once))
