"""Tables of comma-separated values, read with the standard library alone."""

import csv
import functools
import math
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Table(NamedTuple):
    """A table with one label for each row.

    Attributes:
      columns: names of the numeric columns.
      values: float64, row by row; `len(columns)` for each row.
      labels: the label column, one entry per row.
      ids: the id column, one entry per row; None without one.
      lines: the line of the file at which each row ends.
    """

    columns: tuple[str, ...]
    values: "array[float]"
    labels: tuple[str, ...]
    ids: tuple[str, ...] | None
    lines: tuple[int, ...]


def read(
    path: Path, label: str, columns: Sequence[str] = (), id_column: str | None = None
) -> Table:
    """Reads a table whose first line names the columns. Empty lines are skipped.

    Args:
      path: of the file, in UTF-8.
      label: the column of the classes.
      columns: the numeric columns; empty for all others.
      id_column: the column that names the rows.

    Returns:
      `Table`, read once as long as the file does not change.

    Raises:
      ValueError: the file cannot be read, a column is missing or named twice, a row is too short
        or too long, a cell is not a finite number, or a label is empty; with the line.
    """
    try:
        stat = os.stat(path)
        return _read(Path(path), stat.st_mtime_ns, stat.st_size, label, tuple(columns), id_column)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`path` {path} cannot be read: {error}") from error


@functools.lru_cache(maxsize=6)
def _read(
    path: Path,
    _time: int,
    _size: int,
    label: str,
    columns: tuple[str, ...],
    id_column: str | None,
) -> Table:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        names = [name.strip() for name in next(reader, [])]
        columns = columns or tuple(n for n in names if n not in (label, id_column))
        places = [_place(path, names, name) for name in columns]
        label_place = _place(path, names, label)
        id_place = None if id_column is None else _place(path, names, id_column)
        if not places or label in columns:
            raise ValueError(
                f"`columns` of {path} must be at least one column other than the label {label!r}, "
                f"got {', '.join(columns) or 'none'}"
            )
        values, labels, ids, lines = array("d"), [], [], []
        for row in reader:
            if not row:
                continue
            line = reader.line_num
            if len(row) != len(names):
                raise ValueError(
                    f"{path}, line {line}: a row must have {len(names)} cells, got {len(row)}"
                )
            values.extend(
                _number(path, line, c, row[p]) for c, p in zip(columns, places, strict=True)
            )
            labels.append(row[label_place].strip())
            if not labels[-1]:
                raise ValueError(f"{path}, line {line}: `label` column {label!r} is empty")
            ids.append("" if id_place is None else row[id_place].strip())
            lines.append(line)
    if not labels:
        raise ValueError(f"`path` {path} must have at least one row below its first line")
    return Table(
        columns, values, tuple(labels), tuple(ids) if id_place is not None else None, tuple(lines)
    )


def _place(path: Path, names: list[str], name: str) -> int:
    if names.count(name) != 1:
        what = "must name a column once" if name in names else "is no column"
        raise ValueError(
            f"column {name!r} of {path} {what}; the columns are {', '.join(names) or 'none'}"
        )
    return names.index(name)


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{path}, line {line}: column {column!r} must be a finite number, got {cell!r}"
        )
    return number


def classes_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels in order, integers by their value.

    Example:
      >>> classes_of(["b", "a", "b"]), classes_of(["10", "9"])
      (('a', 'b'), ('9', '10'))
    """
    found = set(labels)
    numeric = all(label.lstrip("-").isdecimal() for label in found)
    return tuple(sorted(found, key=(lambda label: (int(label), label)) if numeric else None))
