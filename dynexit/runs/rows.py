"""What happened to every row of the test split, as a table."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from dynexit.core.files import replacing
from dynexit.core.shapes import AnyArray, Int, Shaped


def write_rows(
    path: Path,
    examples: dict[str, Any],
    answers: Shaped[AnyArray, "M ..."],
    exits: Int[AnyArray, "M"],
) -> None:
    """Writes one line for each row: what the source says of it, its answer and its exit.

    Args:
      path: of the table, which is replaced.
      examples: of the test split; every leaf `[M]` other than the inputs becomes a column, ids
        among them. Answers and labels per position are omitted.
      answers: int `[M]` or `[M, ...]`, what the dynamic program answered.
      exits: int `[M]`, the exit that each row took, from 0.
    """
    columns: dict[str, Any] = {"row": np.arange(len(exits))}
    own = {
        name: leaf for name, leaf in examples.items() if name not in ("inputs", "answer", "exit")
    }
    for name, leaf in {**own, "answer": answers, "exit": exits}.items():
        if not isinstance(leaf, dict) and np.shape(leaf) == np.shape(exits):
            columns[name] = np.asarray(leaf)
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
