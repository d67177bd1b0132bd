"""The device suite: the cost and the savings of early exit on one GPU, TPU host or CPU.

    python -m dynexit.bench.device_suite --out results.json

It needs only jax, flax and numpy, and measures PyTorch as a peer if it is installed. It takes at
most 8 minutes, writes the JSON file after every measurement, and prints a table at the end.
`dynexit bench --suite device` runs it too.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dynexit.bench.device import report
from dynexit.bench.device.blocks import run_blocks
from dynexit.bench.device.loops import run_loops
from dynexit.bench.device.peer import run_peer
from dynexit.bench.device.state import State
from dynexit.bench.device.streaming import run_streaming
from dynexit.bench.device.training import run_training

SECONDS = 450.0
NAMES = ("loops", "blocks", "peer", "training", "streaming", "decoding")


def _run_decoding(suite: State, batch: int) -> None:
    if importlib.util.find_spec("flax") is None:
        return suite.skip("decoding", f"batch {batch}", "flax is not installed")
    from dynexit.bench.device.decoding import run_decoding

    run_decoding(suite, batch)


PARTS: dict[str, Callable[..., None]] = {
    "loops": run_loops,
    "blocks": run_blocks,
    "peer": run_peer,
    "training": run_training,
    "streaming": run_streaming,
    "decoding": _run_decoding,
}
# Expected seconds on one data-centre GPU, most of them compilation, and in small form on a CPU.
EXPECTED = {"loops": 45, "blocks": 90, "peer": 15, "training": 60, "streaming": 45, "decoding": 60}
EXPECTED_SMALL = {"loops": 3, "blocks": 6, "peer": 2, "training": 7, "streaming": 3, "decoding": 8}


class Unit(NamedTuple):
    """A part of the suite that is measured, or skipped, as a whole.

    Attributes:
      section: one of `NAMES`.
      label: name of the unit within its section.
      seconds: expected duration.
      arguments: of the section's function, after the state of the suite.
    """

    section: str
    label: str
    seconds: float
    arguments: tuple[Any, ...] = ()


def run(
    out: Any = None,
    small: bool = False,
    seconds: float = SECONDS,
    sections: Sequence[str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> State:
    """Runs the suite and prints its table.

    Args:
      out: path of the JSON file, or None to write none.
      small: whether to run a small network, to check that the suite works.
      seconds: the time budget; units that are not expected to end within it are skipped.
      sections: names from `NAMES`; None for all.
      changes: values for attributes of the `State`, such as `batches`.

    Returns:
      The `State`, with records, errors and skipped units.

    Raises:
      ValueError: a section or an attribute is unknown.
    """
    if unknown := set(sections or ()) - set(NAMES):
        raise ValueError(f"`sections` must be of {', '.join(NAMES)}, got {sorted(unknown)}")
    share_memory()
    suite = State(out, small, seconds, report.hardware())
    for name, value in (changes or {}).items():
        if not hasattr(suite, name):
            raise ValueError(f"`changes` must name attributes of the State, got {name!r}")
        setattr(suite, name, value)
    suite.save()
    _run_units(suite, sections)
    suite.save()
    print(report.table(suite), flush=True)
    return suite


def share_memory() -> None:
    """Turns off JAX's preallocation, so that child processes and PyTorch have GPU memory."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _run_units(suite: State, sections: Sequence[str] | None) -> None:
    wanted = [u for u in units(suite) if sections is None or u.section in sections]
    pace = 1.0  # measured seconds over expected ones, of the units so far
    spent = expected = 0.0
    for k, unit in enumerate(wanted):
        suite.expect(pace * sum(u.seconds for u in wanted[k:]))
        began = suite.elapsed()
        if suite.has_time(unit.section, unit.label, pace * unit.seconds):
            _run_unit(suite, unit)
            took = suite.elapsed() - began
            if took > 0.1 * unit.seconds:  # otherwise it was skipped
                spent, expected = spent + took, expected + unit.seconds
                pace = min(max(spent / expected, 0.2), 5.0)


def units(suite: State) -> list[Unit]:
    """The units in the order in which they run, the more important ones first."""
    expected = EXPECTED_SMALL if suite.small else EXPECTED
    first, *others = suite.batches
    by_batch = lambda section, b: Unit(section, f"batch {b}", expected[section], (b,))
    found = [Unit("loops", "all", expected["loops"]), by_batch("blocks", first)]
    found += [by_batch("peer", first), Unit("training", "all", expected["training"])]
    found += [Unit("streaming", "all", expected["streaming"])]
    decoded, *more = suite.decoding_batches
    found += [by_batch("decoding", decoded)]
    found += [by_batch(section, b) for b in others for section in ("blocks", "peer")]
    return found + [by_batch("decoding", b) for b in more]


def _run_unit(suite: State, unit: Unit) -> None:
    suite.log(f"{unit.section}, {unit.label}")
    try:
        PARTS[unit.section](suite, *unit.arguments)
    except Exception as error:
        suite.fail(unit.section, unit.label, error)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
      0, or 1 where an error was recorded.
    """
    parser = argparse.ArgumentParser(prog="python -m dynexit.bench.device_suite")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="a small network, for a check")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time budget")
    parser.add_argument("--sections", nargs="+", choices=NAMES, help="only these")
    o = parser.parse_args(arguments)
    share_memory()
    if o.small and jax.default_backend() == "cpu":  # a check, where compile time dominates
        jax.config.update("jax_disable_most_optimizations", True)
    suite = run(o.out, o.small, o.seconds, o.sections)
    return 1 if suite.errors else 0


if __name__ == "__main__":
    sys.exit(main())
