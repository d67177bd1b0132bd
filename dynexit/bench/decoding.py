"""Seconds and turns of `dx.decoding.decode`, beside those of another checkout.

    python -m dynexit.bench.decoding --against ../older

A recurrent-depth decoder with random weights continues random prompts greedily. Each checkout runs
in a process of its own, and the calls alternate. The quickest wall and CPU seconds of a call are
printed, and the turns over the iterations of all tokens divided by the rows, which is 1 if every
row is busy in every turn. With `--prompts` above the rows, prompts wait for a row.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

LENGTH, VOCABULARY, STEPS, THRESHOLD = 64, 96, 16, 0.2
Case: TypeAlias = dict[str, Any]  # width, heads, prompts, rows, slots, count
Record: TypeAlias = dict[str, Any]  # seconds, cpu, turns, full, tokens


def program(case: Case) -> Callable[[], Any]:
    """A call that decodes the case and waits for the result."""
    import jax

    from dynexit.core.data import Tokens
    from dynexit.criteria.settling import residual_below
    from dynexit.decoding.recurrent.decode import decode
    from dynexit.models.recurrent.settings_transformers import RecurrentDepth

    model = RecurrentDepth(
        width=case["width"], heads=case["heads"], core=2, steps=STEPS, mean_steps=5
    ).build(Tokens(VOCABULARY), VOCABULARY)
    noise = lambda a: a + 0.02 * jax.random.normal(jax.random.key(a.size), a.shape)
    params = jax.tree.map(noise, model.init(jax.random.key(0)))
    prompts = jax.random.randint(jax.random.key(1), (case["prompts"], LENGTH), 0, VOCABULARY)
    rule = residual_below(THRESHOLD)
    queue = {"rows": case["rows"]} if case["prompts"] > case["rows"] else {}
    settings = {"slots": case["slots"], **queue}
    arguments = model, params, prompts, case["count"], rule
    return lambda: jax.block_until_ready(decode(*arguments, **settings))


def serve() -> None:
    """Answers every line, a case as JSON, with the record of one call; the first call compiles."""
    import numpy as np

    programs: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        case = json.loads(line)
        if line not in programs:
            programs[line] = program(case)
            programs[line]()
        wall, cpu = time.perf_counter(), time.process_time()
        found = programs[line]()
        record = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        full = int(np.asarray(found.steps[:, 1:]).sum()) / case["rows"]
        record |= {"turns": int(found.turns), "full": full, "tokens": found.tokens.tolist()}
        print(json.dumps(record), flush=True)


def compare(folders: dict[str, str], case: Case, repeats: int) -> dict[str, Record]:
    """The last record of every checkout, named in `folders`, with its quickest seconds."""
    command, pipe = [sys.executable, "-P", __file__, "--serve"], subprocess.PIPE
    beside = lambda folder: {**os.environ, "PYTHONPATH": folder}
    start = lambda folder: subprocess.Popen(
        command, env=beside(folder), stdin=pipe, stdout=pipe, text=True
    )
    workers = {name: start(folder) for name, folder in folders.items()}
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
    parser.add_argument("--prompts", type=int, default=0, help="at least the rows")
    for name, default in {"width": 64, "heads": 4, "count": 64, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        serve()
        return 0
    folders = {"here": str(Path(__file__).parents[2])}
    folders |= {"against": os.path.abspath(options.against)} if options.against else {}
    given = {name: getattr(options, name) for name in ("width", "heads", "count")}
    for rows in options.rows:
        for slots in options.slots:
            case = {**given, "rows": rows, "slots": slots, "prompts": max(rows, options.prompts)}
            found = compare(folders, case, options.repeats)
            of = found["here"]
            print(
                f"{rows} rows, {slots} slots: {of['turns']} turns, {of['turns'] / of['full']:.3f}"
            )
            for name, r in found.items():
                ratios = f"{r['seconds'] / of['seconds']:.2f}, CPU {r['cpu'] / of['cpu']:.2f}"
                same = "equal" if r["tokens"] == of["tokens"] else "other"
                seconds = f"{r['seconds']:.3f} s, CPU {r['cpu']:.3f} s"
                print(f"  {name}: {seconds}; over here: {ratios}; {same} tokens", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
