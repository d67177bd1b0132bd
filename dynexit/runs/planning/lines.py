"""One line of a plan: a quantity and how it is known."""

import math
from typing import NamedTuple


class Line(NamedTuple):
    """One quantity of a plan.

    Attributes:
      what: its name.
      value: a number, in `unit`.
      unit: such as "bytes" or "FLOPs".
      source: how it is known.
    """

    what: str
    value: float
    unit: str
    source: str


def in_units(line: Line) -> str:
    """The value with its unit.

    Example:
      >>> in_units(Line("", 3.2e9, "bytes", "")), in_units(Line("", 0.5, "", ""))
      ('3.20 GB', '0.500')
    """
    names = {"bytes": ("B", "kB", "MB", "GB", "TB"), "FLOPs": ("", "k", "M", "G", "T", "P")}
    if line.unit not in names:
        number = f"{line.value:g}" if float(line.value).is_integer() else f"{line.value:.3f}"
        return f"{number} {line.unit}".strip()
    scale = min(len(names[line.unit]) - 1, int(math.log10(max(1, line.value)) // 3))
    unit = names[line.unit][scale] + ("FLOP" if line.unit == "FLOPs" else "")
    return f"{line.value / 1000**scale:.2f} {unit}"
