"""Decoding in seconds: batches beside peers, and a queue beside batches that are not refilled.

`python -m dynexit.runs.generation.benchmark` is the command.
"""

import itertools
import math
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from dynexit.core.shapes import HostArray, Int, PyTree
from dynexit.core.types import Model
from dynexit.decoding.drafts import Draft
from dynexit.decoding.generate import Generated, generate

Write: TypeAlias = Callable[[Int[HostArray, "B P"], int], list[Int[HostArray, "_"]]]


class Queued(NamedTuple):
    """How long a list of prompts took.

    Attributes:
      draft: the name of the kind of draft.
      kind: "static batches" or "queue".
      seconds: the least of the repeats, prompts included.
      rounds: passes of the model over a batch.
      equal: texts that equal those of one prompt at a time, without drafts.
    """

    draft: str
    kind: str
    seconds: float
    rounds: int
    equal: int


def timed(
    writers: dict[str, Write], prompts: Int[HostArray, "B P"], tokens: int, repeats: int
) -> None:
    """Times every writer and prints a line for each; the first one is the reference.

    A figure is the time of a token after the prompt: the least of several interleaved repeats, less
    that of one token.
    """
    least = {(name, n): math.inf for name in writers for n in (1, tokens)}
    found: dict[str, list[HostArray]] = {}
    for repeat in range(repeats + 1):  # the first one compiles
        for name, write in writers.items():
            for n in (1, tokens):
                start = time.perf_counter()
                found[name] = write(prompts, n)
                if repeat:
                    least[name, n] = min(least[name, n], time.perf_counter() - start)
    seconds = {name: (least[name, tokens] - least[name, 1]) / (tokens - 1) for name in writers}
    first = next(iter(writers))
    for name in writers:
        same = [np.array_equal(a, b) for a, b in zip(found[name], found[first], strict=True)]
        print(
            f"batch {len(prompts):3d}  {name:32s} {1e3 * seconds[name]:8.2f} ms a token step, "
            f"{seconds[first] / seconds[name]:5.2f} times {first}, "
            f"{sum(same)} of {len(same)} texts equal",
            flush=True,
        )


def timed_queue(
    model: Model,
    weights: PyTree,
    prompts: Int[HostArray, "M P"],
    limits: list[int],
    slots: int,
    drafts: Mapping[str, Draft | None],
    repeats: int = 3,
) -> list[Queued]:
    """Times a queue whose slots are refilled, and batches that wait for their longest text.

    Args:
      model: with a decoder.
      weights: parameters, or those of `decoder.unstack`.
      prompts: int32 `[M, P]`.
      limits: tokens to write after each.
      slots: rows that run at once, and rows of a batch.
      drafts: kinds of draft by name, as in `generate`.
      repeats: interleaved; the least time counts.

    Returns:
      `Queued` of static batches and of the queue, of each kind of draft.
    """

    def batches(size: int, draft: Draft | None) -> list[Generated]:
        parts = [slice(k, k + size) for k in range(0, len(prompts), size)]
        write = lambda x, n: generate(model, weights, x, n, draft=draft, slots=slots)
        return [write(prompts[part], limits[part]) for part in parts]

    sizes = {"static batches": slots, "queue": len(prompts)}
    programs = list(itertools.product(drafts, sizes))
    alone = generate(model, weights, prompts, limits, slots=1).tokens
    least, found = dict.fromkeys(programs, math.inf), dict[tuple[str, str], list[Generated]]()
    for repeat, (name, kind) in itertools.product(range(repeats + 1), programs):
        start = time.perf_counter()
        found[name, kind] = batches(sizes[kind], drafts[name])
        if repeat:  # the first one compiles
            least[name, kind] = min(least[name, kind], time.perf_counter() - start)
    results: list[Queued] = []
    for (name, kind), parts in found.items():
        texts = [text for part in parts for text in part.tokens]
        equal = sum(map(np.array_equal, texts, alone))
        rounds = sum(part.total_rounds for part in parts)
        results.append(Queued(name, kind, least[name, kind], rounds, equal))
    return results


def geometric_lengths(count: int, mean: float, seed: int = 0) -> list[int]:
    """Numbers of tokens with a geometric distribution, at most 8 times the mean.

    Example:
      >>> geometric_lengths(4, 16.0)
      [11, 16, 1, 1]
    """
    lengths = np.random.default_rng(seed).geometric(1 / mean, count)
    return np.minimum(lengths, math.ceil(8 * mean)).tolist()


def library_texts(
    encode: Callable[[str], list[int]], length: int, count: int
) -> Int[HostArray, "B P"]:
    """The first tokens of pieces of Python's standard library.

    Raises:
      ValueError: there are fewer pieces.
    """
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    rows: list[list[int]] = []
    for file in files:
        tokens = encode(file.read_text(errors="replace")[2000 : 2000 + 20 * length])
        if len(tokens) >= length:
            rows.append(list(tokens[:length]))
        if len(rows) == count:
            return np.array(rows, np.int32)
    raise ValueError(f"`count` must be at most {len(rows)}, the texts that there are, got {count}")
