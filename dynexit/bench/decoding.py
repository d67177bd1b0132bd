"""Seconds and turns of `dx.decoding.decode`, and of that of another checkout in turns with it.

    python -m dynexit.bench.decoding --against ../older

A recurrent-depth decoder with random weights continues random prompts greedily. Each checkout runs
in a process of its own, and the calls alternate. For each number of rows and of slots the quickest
wall and CPU seconds of a call are printed, of the prompts alone, and the turns over

    the sum of the iterations of the deepest row  (1: no turn is lost)
    the sum of the iterations of a row, on average  (1: every row is busy in every turn)
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import dynexit

LENGTH, VOCABULARY, STEPS, THRESHOLD = 64, 96, 16, 0.2
Case: TypeAlias = dict[str, Any]  # width, heads, rows, slots, count
Record: TypeAlias = dict[str, Any]  # seconds, cpu, tokens, turns, deepest, mean


def program(case: Case) -> Callable[[], Any]:
    """A call that decodes the case and waits for the result."""
    import jax

    import dynexit as dx

    model = dx.models.RecurrentDepth(
        width=case["width"], heads=case["heads"], core=2, steps=STEPS, mean_steps=5
    ).build(dx.Tokens(VOCABULARY), VOCABULARY)
    noise = lambda a: a + 0.02 * jax.random.normal(jax.random.key(a.size), a.shape)
    params = jax.tree.map(noise, model.init(jax.random.key(0)))
    prompts = jax.random.randint(jax.random.key(1), (case["rows"], LENGTH), 0, VOCABULARY)
    rule = dx.criteria.residual_below(THRESHOLD)
    arguments = model, params, prompts, case["count"], rule
    return lambda: jax.block_until_ready(dx.decoding.decode(*arguments, slots=case["slots"]))


def timed(call: Callable[[], Any]) -> Record:
    """Seconds of one call, and what it decoded."""
    import numpy as np

    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sums = np.asarray(found.steps[:, 1:]).sum(axis=1)
    record = {"seconds": wall, "cpu": cpu, "turns": int(found.turns)}
    record |= {"deepest": int(sums.max()), "mean": float(sums.mean())}
    return record | {"tokens": np.asarray(found.tokens).tolist()}


def serve() -> None:
    """Answers every case, a line of JSON, with a record; a case compiles at its first line."""
    programs: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        if line not in programs:
            programs[line] = program(json.loads(line))
            programs[line]()
        print(json.dumps(timed(programs[line])), flush=True)


def compare(folders: dict[str, str], case: Case, repeats: int) -> dict[str, Record]:
    """The quickest seconds of one case for every checkout, measured in turns.

    Args:
      folders: name -> folder of a checkout.
      case: "width", "heads", "rows", "slots" (None for all) and "count".
      repeats: calls of each.

    Returns:
      name -> the last record, with the least "seconds" and "cpu".
    """
    command = [sys.executable, "-P", __file__, "--serve"]
    workers = {
        name: subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, folder in folders.items()
    }
    found: dict[str, list[Record]] = {name: [] for name in folders}
    for _ in range(repeats):
        for name, worker in workers.items():
            assert worker.stdin is not None and worker.stdout is not None
            print(json.dumps(case), file=worker.stdin, flush=True)
            found[name].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    least = lambda records, key: min(record[key] for record in records)
    return {n: r[-1] | {k: least(r, k) for k in ("seconds", "cpu")} for n, r in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line for each number of rows and of slots."""
    parser = argparse.ArgumentParser(prog="python -m dynexit.bench.decoding")
    parser.add_argument("--against", help="folder of another checkout")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, STEPS])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--count", type=int, default=64, help="tokens of each row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        serve()
        return 0
    folders = {"here": os.path.dirname(os.path.dirname(dynexit.__file__))}
    folders |= {"against": os.path.abspath(options.against)} if options.against else {}
    size = {"width": options.width, "heads": options.heads}
    for rows in options.rows:
        for slots in options.slots:
            case = {**size, "rows": rows, "slots": slots}
            found = compare(folders, {**case, "count": options.count}, options.repeats)
            prompts = compare(folders, {**case, "count": 1}, options.repeats)
            print(line(f"{rows} rows, {slots} slots", found, prompts), flush=True)
    return 0


def line(name: str, found: dict[str, Record], prompts: dict[str, Record]) -> str:
    """What `main` prints of a case."""
    of = found["here"]
    said = [f"{name}: {of['turns']} turns, {of['turns'] / of['deepest']:.3f} x the deepest row"]
    said.append(f"{of['turns'] / of['mean']:.3f} x the mean row")
    for checkout, r in found.items():
        alone = prompts[checkout]
        said.append(
            f"{checkout} {r['seconds']:.3f} s (CPU {r['cpu']:.3f}), "
            f"prompts {alone['seconds']:.3f} (CPU {alone['cpu']:.3f})"
        )
    if "against" in found:
        ratio = lambda key: found["against"][key] / of[key]
        said.append(f"against / here {ratio('seconds'):.2f}, CPU {ratio('cpu'):.2f}")
        said.append("same tokens" if found["against"]["tokens"] == of["tokens"] else "other tokens")
    return "; ".join(said)


if __name__ == "__main__":
    raise SystemExit(main())
