"""The grid of a sweep: every combination of the settings that have more than one value."""

import dataclasses
import itertools
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynexit.core.settings import validate


class Axis(NamedTuple):
    """A setting with several values.

    Attributes:
      name: dotted, `model.depth`.
      words: of each value, as they stand on the command line.
      values: the values, typed.
    """

    name: str
    words: tuple[tuple[str, ...], ...]
    values: tuple[Any, ...]


class Point(NamedTuple):
    """One run of the grid.

    Attributes:
      name: of its folder, `depth=4,seed=0`.
      settings: all settings of the run.
      words: the options that select it, `--model.depth 4 --seed 0`.
    """

    name: str
    settings: Any
    words: tuple[str, ...]


def points_of(axes: Sequence[Axis], settings: Any) -> list[Point]:
    """All combinations; the last axis varies fastest.

    Args:
      axes: at least one.
      settings: of every run, before the values of the axes are put in.

    Returns:
      The points, whose settings are not validated.

    Example:
      >>> from dynexit.core.settings import Settings
      >>> axes = [Axis("training.steps", (("5",), ("9",)), (5, 9)), Axis("seed", (("3",),), (3,))]
      >>> [(p.name, p.settings.training.steps) for p in points_of(axes, Settings())]
      [('steps=5,seed=3', 5), ('steps=9,seed=3', 9)]
    """
    short = short_names([axis.name for axis in axes])
    found = []
    for indices in itertools.product(*(range(len(axis.values)) for axis in axes)):
        chosen, names, words = settings, [], []
        for axis, k in zip(axes, indices, strict=True):
            chosen = replaced(chosen, axis.name, axis.values[k])
            value = urllib.parse.quote_plus(" ".join(axis.words[k]), safe="")
            names.append(f"{short[axis.name]}={value}")
            words += [f"--{axis.name}", *axis.words[k]]
        found.append(Point(",".join(names), chosen, tuple(words)))
    return found


def faults_of(points: Sequence[Point]) -> list[str]:
    """What the settings of the points break, one sentence each, with the points where it holds."""
    found: dict[str, list[str]] = {}
    for point in points:
        for sentence in validate(point.settings):
            found.setdefault(sentence, []).append(point.name)
    where = lambda names: ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [
        f"{sentence} ({len(names)} of {len(points)} runs: {where(names)})"
        for sentence, names in found.items()
    ]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted name where no other name ends in it.

    Example:
      >>> short_names(["model.depth", "seed"])
      {'model.depth': 'depth', 'seed': 'seed'}
      >>> short_names(["model.depth", "data.depth"])
      {'model.depth': 'model.depth', 'data.depth': 'data.depth'}
    """
    last = [name.rpartition(".")[2] for name in names]
    return {
        name: end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)
    }


def replaced(settings: Any, name: str, value: Any) -> Any:
    """The settings with another value at a dotted name."""
    first, _, rest = name.partition(".")
    if rest:
        value = replaced(getattr(settings, first), rest, value)
    return dataclasses.replace(settings, **{first: value})


def value_at(content: Any, name: str) -> Any:
    """The value at a dotted name of nested dicts or dataclasses."""
    for part in name.split("."):
        content = content[part] if isinstance(content, Mapping) else getattr(content, part)
    return content


def argv_of(file: Path, shared: Sequence[str], point: Point, folder: Path) -> list[str]:
    """The words after `dynexit` that start or resume one run of a sweep.

    Args:
      file: the experiment.
      shared: options of all runs.
      point: the run.
      folder: of the sweep; the run's is `folder/NAME`.
    """
    return ["train", str(file), *shared, *point.words, "--run", str(folder / point.name)]
