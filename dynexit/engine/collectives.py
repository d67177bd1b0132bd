"""Collectives of a compiled program that would make devices wait for one that has exited.

A collective blocks until every device of its group calls it. Devices whose rows exit at different
depths run different numbers of iterations, so a collective inside of the loop over depth may only
have groups of devices whose rows exit together. While tracing, only the collectives that the
program names are known (`loops.py`). Along automatic mesh axes XLA's partitioner inserts further
ones later. They are read from the compiled program.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dynexit.core.shapes import Int

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "recv",
    "reduce-scatter",
    "send",
)
GLOBAL = ("all-gather", "all-reduce", "reduce-scatter")  # may count replicas in place of devices
_CALLED = re.compile(
    r"(body|condition|calls|to_apply|branch_computations|true_computation|false_computation|"
    r"called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_METADATA = re.compile(r'metadata=\{(?:[^"}]|"[^"]*")*\}')
_OPCODE = re.compile(r"\s([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"([a-z]+[0-9]*)[a-z0-9]*\[([0-9,]*)\]")
_IOTA = r"\[[0-9,]+\](?:T\([0-9,]+\))?"
_MESH = re.compile(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(({_IOTA}|[0-9,]+)\))? \{{([^}}]*)\}}"
)
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")

# None, or a `Reading`. JAX traces again for every new value, so that its list is complete.
reading: Any = jax.make_user_context(None)


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
      kind: such as "all-reduce".
      name: of the operation in the program.
      groups: devices that wait for each other, as positions in the mesh; None for all.
      apart: whether it is in a loop whose number of iterations is not known when compiling, or in
        a branch.
      shape: of its result, as the program writes it.
      source: the names of the functions and primitives that it comes from.
      times: how often it runs; the body of a loop of unknown length counts once.
    """

    kind: str
    name: str
    groups: tuple[tuple[int, ...], ...] | None
    apart: bool
    shape: str
    source: str
    times: int = 1

    @property
    def bytes(self) -> int:
        """Bytes of its result on one device."""
        return sum(
            int(np.prod([int(n) for n in sizes.split(",") if n], dtype=np.int64)) * _width(kind)
            for kind, sizes in _SHAPE.findall(self.shape)
        )

    def sent(self, devices: int) -> float:
        """Bytes that one device sends at each call, in a ring of its group.

        Args:
          devices: of the program, the group where none is named.

        Example:
          >>> Collective("all-reduce", "r", ((0, 1, 2, 3),), False, "f32[8]", "").sent(4)
          48.0
        """
        size = len(self.groups[0]) if self.groups else devices
        share = (size - 1) / size
        if self.kind == "all-reduce":
            return 2 * share * self.bytes
        if self.kind == "reduce-scatter":
            return (size - 1) * self.bytes
        return share * self.bytes if self.kind in ("all-gather", "all-to-all") else self.bytes


class Reading:
    """What is recorded while a program is traced that will be read.

    Attributes:
      loops: for each loop over rows the mesh, and the axes along which its decision differs.
    """

    def __init__(self) -> None:
        self.loops: list[tuple[Any, frozenset[Any]]] = []


def compile_sharded(f: Callable[..., Any], *args: Any) -> jax.stages.Compiled:
    """Compiles a function that runs rows to their exits inside `jax.shard_map`.

    Use it where some mesh axes are automatic and have more than one device. The loops over depth
    are then refused while tracing, since the partitioner adds collectives later. This function
    reads the compiled program instead and refuses it only if a collective inside of a loop would
    make devices wait for one that has ended its loop.

    Args:
      f: a function of arrays; it is compiled by `jax.jit`.
      *args: arrays, or shapes with shardings.

    Returns:
      The compiled program, which is called with arrays of the same shapes and shardings.

    Raises:
      ValueError: the program could wait without end; the error names the collective.

    Example:
      >>> import dynexit as dx, jax.numpy as jnp
      >>> step = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.ones(3))
      >>> rule = dx.criteria.gate_above(2.5, read=lambda output: output)
      >>> run = lambda x: dx.run_until(step, x, criterion=rule).exit_depth
      >>> compile_sharded(run, jnp.array([0.0, 1.0, 2.0]))(jnp.array([0.0, 1.0, 2.0]))
      Array([3, 2, 1], dtype=int32)
    """
    read = Reading()
    with reading(read):
        compiled = jax.jit(lambda *args: f(*args)).lower(*args).compile()
    refuse_waiting(compiled.as_text() or "", read.loops)
    return compiled


def refuse_waiting(text: str, loops: Sequence[tuple[Any, frozenset[Any]]]) -> None:
    """Refuses a compiled program in which devices would wait for one that has exited.

    Args:
      text: the program in HLO.
      loops: of `Reading`.

    Raises:
      ValueError: a collective inside of a loop has a group of devices that exit apart.
    """
    varying = frozenset[Any]().union(*(axes for _, axes in loops))
    if not varying:
        return
    mesh = loops[0][0]
    exits = exit_groups(tuple(mesh.shape.items()), varying)
    if exits.max() == 0:
        return
    for each in collectives(text):
        if not each.apart:
            continue
        groups = each.groups or (tuple(range(len(exits))),)
        for group in groups:
            if len({int(exits[device]) for device in group}) > 1:
                axes = ", ".join(map(repr, sorted(varying)))
                raise ValueError(
                    f"`f` compiles to a program that may never end: {each.kind} {each.name} "
                    f"({each.source}) is inside of the loop over depth and joins the devices "
                    f"{list(group)}, whose rows exit at different depths (mesh axis {axes}). XLA "
                    "inserted it for an automatic mesh axis. Split the weights so that each device "
                    "needs no exchange within a step other than sums, such as attention heads on "
                    "an axis of their own; or make every axis manual"
                )


def exit_groups(axes: tuple[tuple[str, int], ...], varying: frozenset[Any]) -> Int[np.ndarray, "n"]:
    """A number for each device: devices with equal numbers run the same iterations.

    Args:
      axes: names and sizes of the mesh, in order.
      varying: the axes along which decisions differ.

    Example:
      >>> exit_groups((("data", 2), ("model", 2)), frozenset({"data"})).tolist()
      [0, 0, 1, 1]
    """
    sizes = [size for _, size in axes]
    groups = np.zeros(sizes, np.int64)
    for k, (name, size) in enumerate(axes):
        if name in varying:
            along = np.arange(size).reshape([-1 if j == k else 1 for j in range(len(sizes))])
            groups = groups * size + along
    return groups.reshape(-1)


def collectives(text: str) -> tuple[Collective, ...]:
    """Every collective of a compiled program.

    Args:
      text: HLO, as `compiled.as_text()` gives it.
    """
    computations = _computations(text)
    calls = {name: [*_calls(lines)] for name, lines in computations.items()}
    apart = set[str]()
    waiting = [call.name for made in calls.values() for call in made if call.divergent]
    while waiting:
        name = waiting.pop()
        if name not in apart:
            apart.add(name)
            waiting += [call.name for call in calls.get(name, ())]
    times = _times(calls, text)
    return tuple(
        found
        for name, lines in computations.items()
        for line in lines
        if (found := _collective(line, name in apart, times.get(name, 1))) is not None
    )


class _Call(NamedTuple):
    """A computation that another one calls.

    Attributes:
      name: of the called computation.
      divergent: whether devices may differ in how often they call it.
      times: how often it is called, 1 where that is not known.
    """

    name: str
    divergent: bool
    times: int


def _times(calls: dict[str, list[_Call]], text: str) -> dict[str, int]:
    """How often each computation runs."""
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    found: dict[str, int] = {}
    waiting = [(entry[1], 1)] if entry else []
    while waiting:
        name, times = waiting.pop()
        found[name] = found.get(name, 0) + times
        waiting += [(call.name, times * call.times) for call in calls.get(name, ())]
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of every computation."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if head := _HEAD.match(line.rstrip()):
            current = found.setdefault(head[1], [])
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return found


def _calls(lines: list[str]) -> Iterator[_Call]:
    for line in lines:
        trips = re.search(r'known_trip_count":\{"n":"([0-9]+)"', line)
        for kind, names in _CALLED.findall(_METADATA.sub("", line)):
            loop = kind in ("body", "condition")
            branch = kind.endswith(("branch_computations", "true_computation", "false_computation"))
            for name in re.findall(r"[\w.\-]+", names):
                times = int(trips[1]) if loop and trips else 1
                yield _Call(name, branch or (loop and not trips), times)


def _collective(line: str, apart: bool, times: int) -> Collective | None:
    name, equals, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    bare = _METADATA.sub("", rest)
    opcode = _OPCODE.search(" " + bare) if equals else None
    if opcode is None:
        return None
    kind = opcode[1].removesuffix("-start")
    if kind not in KINDS:
        return None
    source = re.search(r'op_name="([^"]*)"', rest)
    of = source[1] if source else ""
    shape, groups = bare[: opcode.start()], _groups(kind, bare)
    return Collective(kind, name.lstrip("%"), groups, apart, shape, of, times)


def _groups(kind: str, line: str) -> tuple[tuple[int, ...], ...] | None:
    """The groups of devices that wait for each other; None for all devices or an unknown form."""
    if kind in GLOBAL and "channel_id=" in line and "use_global_device_ids=true" not in line:
        return None
    if listed := re.search(r"replica_groups=\{(\{[0-9,{} ]*\})\}", line):
        return tuple(
            tuple(int(n) for n in group.split(","))
            for group in re.findall(r"\{([0-9, ]+)\}", listed[1])
        )
    if tiled := re.search(rf"replica_groups=\[([0-9,]+)\]<=({_IOTA})", line):
        shape = _numbers(tiled[1])
        return _rows(_iota(tiled[2]).reshape(-1, shape[-1]))
    if named := _MESH.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=([0-9]+)", named[1])}
        count = int(np.prod([*sizes.values()]))
        return _along(sizes, _iota(named[2] or f"[{count}]"), named[3])
    return None  # a permutation waits for all devices


def _iota(form: str) -> Int[np.ndarray, "n"]:
    """Devices in the order of a form such as "[8,8]T(1,0)", or of a list "0,2,1,3"."""
    if not form.startswith("["):
        return np.array(_numbers(form))
    sizes, _, order = form.partition("T")
    shape = _numbers(sizes)
    axes = _numbers(order) if order else range(len(shape))
    return np.arange(np.prod(shape)).reshape(shape).transpose(axes).reshape(-1)


def _along(
    sizes: dict[str, int], devices: Int[np.ndarray, "n"], axes: str
) -> tuple[tuple[int, ...], ...]:
    """Groups along some axes of a mesh; "a:(2)4" is the part of 4 of axis "a" after one of 2."""
    parts: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    for name, before, size in re.findall(r"'([^']+)'(?::\(([0-9]+)\)([0-9]+))?", axes):
        first = int(before or 1)
        parts[name].append((first, first * int(size or sizes[name])))
    shape: list[int] = []
    along: list[int] = []
    for name, size in sizes.items():
        cuts = sorted({1, size, *(cut for part in parts[name] for cut in part)})
        for start, stop in itertools.pairwise(cuts):
            if any(a <= start and stop <= b for a, b in parts[name]):
                along.append(len(shape))
            shape.append(stop // start)
    others = [k for k in range(len(shape)) if k not in along]
    grid = devices.reshape(shape or [1]).transpose([*others, *along] or [0])
    return _rows(grid.reshape(-1, int(np.prod([shape[k] for k in along], dtype=np.int64))))


def _rows(groups: Int[np.ndarray, "groups n"]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in groups.tolist())


def _numbers(form: str) -> list[int]:
    return [int(n) for n in re.findall(r"[0-9]+", form)]


def _width(kind: str) -> int:
    """Bytes of an element of an HLO type, such as 4 for "f32"."""
    if kind == "pred":
        return 1
    bits = re.search(r"[0-9]+", kind)
    return max(1, int(bits[0]) // 8) if bits else 0
