"""Rules over parameter paths: which axes of the mesh split which axes of a parameter.

A rule is a pair (regular expression, `PartitionSpec`). The first one whose expression is found in
a parameter's path, such as "blocks/block/qkv/kernel", applies. Its spec is for the **last** axes of
the parameter, so one rule serves weights with and without a leading axis of blocks `[N]`; the axes
before them are whole. A spec of None keeps the parameter whole on every device, and a text in its
place is the reason for which an axis "model" of several devices is refused. A rule may have a third
entry, an expression that must be found in the path of another parameter of the same block, and a
fourth, the number of elements that stay together on a device, such as the channels of a group of a
norm.

The axis "fsdp" then splits the largest other axis that it divides, of every parameter; the first
axis, which may be that of the blocks, only where no other is divided, and not of a small parameter
that "model" splits.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from jax.sharding import PartitionSpec

from dynexit.training.parallel.mesh import AXES, AnyMesh

P = PartitionSpec
SMALL = 2**13  # elements
GROUP = 8  # channels of a group of `layers.norms.GroupNorm`
NORM = r"(^|/)norm2/GroupNorm_0/(scale|bias)$"
LSTM = "an LSTM computes its four gates in one product, whose parts would move between devices"
Place: TypeAlias = PartitionSpec | str | None
Rule: TypeAlias = tuple[str, Place] | tuple[str, Place, str] | tuple[str, Place, str, int]
Rules: TypeAlias = Sequence[Rule]

TENSOR_PARALLEL: Rules = (
    # attention and MLP with weights [out, in]: the heads, the inner width
    (r"(^|/)(query|key|value|up|gate)/weight$", P("model", None)),
    (r"(^|/)blocks/(query|key|value|up|gate)/bias$", P("model")),
    (r"(^|/)(out|down)/weight$", P(None, "model")),
    # attention: the heads
    (r"(^|/)(qkv|query|key|value|key_value)/kernel$", P("model", None)),  # [D, (3,) heads, d]
    (r"(^|/)(qkv|query|key|value|key_value)/bias$", P("model", None)),
    (r"(^|/)out/kernel$", P("model", None, None), r"(^|/)(qkv|query)/kernel$"),  # [heads, d, D]
    # MLP: the inner width
    (r"(^|/)(up|gate|gate_up)/(kernel|bias)$", P("model")),  # [D, (2,) hidden]
    (r"(^|/)down/kernel$", P("model", None)),  # [hidden, D]
    # diagonal recurrence: the channels
    (r"(^|/)gru/(inputs/(kernel|bias)|recurrent)$", P("model")),  # [D, 3, width], [3, width]
    (r"(^|/)out/kernel$", P("model", None), r"(^|/)gru/recurrent$"),  # [width, D]
    # two products or convolutions, of an equation or of deep thinking: the width between them
    (r"(^|/)in\d*/(kernel|bias)$", P("model"), r"(^|/)out\d*/kernel$"),  # [(w, w,) D, width]
    (r"(^|/)out\d*/kernel$", P("model", None), r"(^|/)in\d*/kernel$"),  # [(w, w,) width, D]
    (r"(^|/)head/conv0/kernel$", P("model"), r"(^|/)conv1/kernel$"),  # [(w,) w, D, width]
    (r"(^|/)head/conv1/kernel$", P("model", None), r"(^|/)conv0/kernel$"),  # [(w,) w, width, D]
    # residual block: the channels between its convolutions, in whole groups of its norm
    (r"(^|/)conv1/kernel$", P("model"), NORM, GROUP),  # [w, w, C, channels]
    (NORM, P("model"), "", GROUP),  # [channels]
    (r"(^|/)conv2/kernel$", P("model", None), NORM),  # [w, w, channels, channels]
    # plain and GRU cells: the hidden units, whose state is gathered at every step
    (r"(^|/)cell/[ih][rzn]?/(kernel|bias)$", P("model"), r"/(h|hn)/kernel$"),  # [D, units]
    (r"(^|/)cell/h[fgo]/kernel$", LSTM),
)
"""Tensor parallelism of the layers of `dynexit.models`. It splits the heads of attention, the width
between two products, and the units of a recurrent cell.
"""


def spec_of(
    name: str, shape: Sequence[int], mesh: AnyMesh, rules: Rules, names: Sequence[str] = ()
) -> PartitionSpec:
    """The spec of one parameter, with one entry for each axis.

    Args:
      name: its path.
      shape: its shape.
      mesh: the devices; axes of size 1 split nothing.
      rules: see above.
      names: the paths of all parameters.

    Raises:
      ValueError: the rule's spec has more axes than the parameter, names an axis that the mesh does
        not have, or one that does not divide the parameter's; or the rule refuses the axis "model".
        The parameter is named.

    Example:
      >>> import jax
      >>> mesh = jax.sharding.AbstractMesh((2, 4), ("fsdp", "model"))
      >>> tuple(spec_of("blocks/block/up/kernel", (6, 8, 32), mesh, TENSOR_PARALLEL))
      (None, 'fsdp', 'model')
    """
    rule = next((rule for rule in rules if applies(rule, name, names)), None)
    place = P() if rule is None else rule[1]
    if isinstance(place, str):
        if (devices := mesh.shape.get("model", 1)) > 1:
            raise ValueError(
                f"`mesh`: the axis 'model' of {devices} devices cannot split {name}, whose shape "
                f"is {list(shape)}: {place}"
            )
        place = P()
    if place is None:
        return P(*[None] * len(shape))
    entries: list[Any] = [None] * len(shape)
    if rule is not None:
        entries = _ruled(rule, place, name, shape, mesh)
    if mesh.shape.get("fsdp", 1) > 1 and "fsdp" not in named_axes(entries):
        free = [k for k, entry in enumerate(entries) if not entry and shape[k]]
        split = [k for k in free if shape[k] % mesh.shape["fsdp"] == 0]
        small = any(entries) and math.prod(shape) <= SMALL
        if split and (max(split) > 0 or not small):
            entries[max(split, key=lambda k: (k > 0, shape[k], k))] = "fsdp"
    return P(*entries)


def without_fsdp(spec: PartitionSpec) -> PartitionSpec:
    """The spec of a parameter that is gathered over "fsdp" for use.

    Example:
      >>> tuple(without_fsdp(P(("data", "fsdp"), "fsdp", "model")))
      ('data', None, 'model')
    """
    keep = lambda axes: tuple(axis for axis in axes if axis != "fsdp")
    entries = [keep(e) if isinstance(e, tuple) else e for e in spec]
    return P(*(None if e in ("fsdp", ()) else e for e in entries))


def applies(rule: Rule, name: str, names: Sequence[str]) -> bool:
    """Whether a rule is for the parameter `name`, of those with the paths `names`.

    Example:
      >>> out = "(^|/)out/kernel$", P("model", None), "query"
      >>> applies(out, "block/out/kernel", ["block/query/kernel", "block/out/kernel"])
      True
      >>> applies(out, "head/out/kernel", ["block/query/kernel", "head/out/kernel"])
      False
    """
    if not re.search(rule[0], name):
        return False
    block = name.rsplit("/", 2)[0] + "/" if name.count("/") > 1 else ""
    beside = [other for other in names if other.startswith(block)]
    return len(rule) < 3 or any(re.search(rule[2], other) for other in beside)


def _ruled(
    rule: Rule, spec: PartitionSpec, name: str, shape: Sequence[int], mesh: AnyMesh
) -> list[Any]:
    """The entries of a rule's spec, aligned with the last axes; axes of size 1 are dropped."""
    pattern, together = rule[0], rule[3] if len(rule) > 3 else 1
    if len(spec) > len(shape):
        raise ValueError(
            f"`rules`: {pattern!r} gives {spec} to {name}, whose shape is only {list(shape)}"
        )
    if unknown := sorted(named_axes(spec) - {*AXES, *mesh.shape}):
        raise ValueError(
            f"`rules`: {pattern!r} names the axis {unknown[0]!r}, and the mesh has "
            f"{', '.join(mesh.shape)}"
        )
    entries: list[Any] = [None] * (len(shape) - len(spec))
    for entry in spec:
        several = entry if isinstance(entry, tuple) else (entry,)
        axes = tuple(axis for axis in several if mesh.shape.get(axis, 1) > 1)
        size = shape[len(entries)]
        for axis in axes:
            if size % (mesh.shape[axis] * together):
                groups = f" in groups of {together}" if together > 1 else ""
                raise ValueError(
                    f"`mesh`: the {mesh.shape[axis]} devices of the axis {axis!r} do not divide "
                    f"axis {len(entries)}{groups} of {name}, whose shape is {list(shape)}"
                )
            size //= mesh.shape[axis]
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return entries


def named_axes(entries: Any) -> set[str]:
    """The mesh axes that a spec names.

    Example:
      >>> sorted(named_axes(P(("data", "fsdp"), None, "model")))
      ['data', 'fsdp', 'model']
    """
    several = (e if isinstance(e, tuple) else (e,) for e in entries if e is not None)
    return {axis for axes in several for axis in axes}
