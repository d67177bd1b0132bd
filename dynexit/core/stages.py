"""Stages: steps with the number of times that each runs, and depths in blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dynexit.core.checks import positive_integer
from dynexit.core.stacking import refuse_other_leaves
from dynexit.core.types import Model, Step


class Stage(NamedTuple):
    """One step and how often it runs.

    Attributes:
      step: the step.
      steps: how many times it runs at most.
      first: index of its first exit.
      blocks_before: blocks executed in the stages before it.
    """

    step: Step
    steps: int
    first: int
    blocks_before: int


Depth = int | None | Sequence[int | None]


def depth_of(step: Step | Sequence[Step], depth: Depth) -> Any:
    """The depth as an integer, or a tuple of them; None stands for `Step.depth`.

    Raises:
      ValueError: None for a step that has no depth of its own, as a tied one has none.

    Example:
      >>> step = Step(lambda i: (), lambda w, i, h: (h, h), depth=3)
      >>> depth_of(step, None), depth_of([step, step], None), depth_of([step, step], [1, None])
      (3, (3, 3), (1, 3))
    """

    def one(step: Any, depth: Any, place: str) -> Any:
        if depth is not None or not isinstance(step, Step):
            return depth
        if step.depth is None:
            raise ValueError(
                f"`depth{place}` must be an integer, got None: `step{place}` has no depth of its "
                "own (`Step.depth` is None, as for tied weights)"
            )
        return step.depth

    if isinstance(step, (tuple, list)):
        if depth is None:
            depth = [None] * len(step)
        if isinstance(depth, (tuple, list)) and len(depth) == len(step):
            return tuple(
                one(s, d, f"[{k}]") for k, (s, d) in enumerate(zip(step, depth, strict=True))
            )
    return one(step, tuple(depth) if isinstance(depth, (tuple, list)) else depth, "")


def stages_of(step: Step | Sequence[Step], depth: Depth) -> tuple[Stage, ...]:
    """A step and a depth, or sequences of both, as stages.

    Args:
      step: one step, or one per stage.
      depth: blocks; one number, or one per stage, a multiple of the step's `blocks`; None for
        `Step.depth`.

    Raises:
      TypeError: another type, or a leaf of the step that is not an array.
      ValueError: depth 0, not a multiple, more than the step has weights for, None where the step
        has no depth, or unequal numbers of steps and depths.
    """
    if isinstance(step, Model):
        raise TypeError("`step` must be a dx.Step, got a dx.Model: hand in `model.steps(params)`")
    depth = depth_of(step, depth)
    several = isinstance(step, (tuple, list))
    if several != isinstance(depth, (tuple, list)):
        raise TypeError(
            f"`step` is {'a sequence' if several else 'one step'}, so `depth` must be "
            f"{'a sequence with one depth a stage' if several else 'one integer'}, got {depth!r}"
        )
    steps = list(step) if isinstance(step, (tuple, list)) else [step]
    depths = list(depth) if isinstance(depth, (tuple, list)) else [depth]
    if not steps or len(steps) != len(depths):
        raise ValueError(
            f"`step` has {len(steps)} stages and `depth` has {len(depths)}; both must have the "
            "same, at least 1"
        )
    stages, first, before = [], 0, 0
    for k, (s, d) in enumerate(zip(steps, depths, strict=True)):
        place = f"[{k}]" if several else ""
        if not isinstance(s, Step):
            raise TypeError(f"`step{place}` must be a dx.Step, got {type(s).__name__}")
        refuse_other_leaves(s, f"step{place}")
        d = positive_integer(d, f"depth{place}")
        if d % s.blocks:
            raise ValueError(
                f"`depth{place}` is {d}, not a multiple of the {s.blocks} blocks that one step "
                "executes"
            )
        if s.depth is not None and d > s.depth:
            raise ValueError(
                f"`depth{place}` is {d}, and `step{place}` is made for {s.depth} blocks at most"
            )
        stages.append(Stage(s, d // s.blocks, first, before))
        first, before = first + d // s.blocks, before + d
    return tuple(stages)


def one_depth(model: Model) -> int:
    """The depth of a model whose blocks are all alike.

    Raises:
      TypeError: the model has stages.
    """
    if not isinstance(model.depth, int):
        raise TypeError(
            f"`model` must be one block or stack of blocks, not {len(model.depth)} stages"
        )
    return model.depth
