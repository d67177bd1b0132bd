"""`python -m tests.lossless`: greedy text with drafts is that without, token for token.

python -m tests.lossless [--prompts 1000] [--updates 400] [--only 0 1 2]

A small model is trained on the bytes of Python's standard library. Its greedy texts after 1,000
prompts are computed anew at every token, from the whole text and without a cache, and compared with
those of each kind of draft.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lossless.grid import GRID, compared, recomputed
from lossless.small_model import library_text, prompts_of, trained

HEAD = "| drafts | slots | prompts | equal | acceptance | rounds a token | seconds |"


def line(case, result):
    accepted = f"{result.accepted / result.drafted:.2f}" if result.drafted else "-"
    rounds = f"{result.rounds / result.tokens:.2f}"
    counts = f"{result.prompts:,} | {result.equal:,}"
    return (
        f"| {case.name} | {case.slots} | {counts} | {accepted} | {rounds} | {result.seconds:.0f} |"
    )


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.lossless")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=400, help="of the training")
    parser.add_argument("--only", type=int, nargs="+", default=range(len(GRID)), help="lines")
    options = parser.parse_args()
    start, text = time.perf_counter(), library_text()
    params, loss = trained(options.updates, text)
    print(f"training: {time.perf_counter() - start:.0f} s, loss {loss:.2f}", file=sys.stderr)
    start = time.perf_counter()
    prompts, limits = prompts_of(text, options.prompts)
    wanted = recomputed(params, prompts, limits)
    gap = min(gaps.min() for _, gaps in wanted)
    print(
        f"{sum(limits):,} tokens recomputed: {time.perf_counter() - start:.0f} s, smallest gap "
        f"between the two largest logits {gap:.1e}",
        file=sys.stderr,
    )
    print(HEAD + "\n|---|---|---|---|---|---|---|", flush=True)
    failed = False
    for case in (GRID[k] for k in options.only):
        result = compared(case, params, prompts, limits, wanted)
        print(line(case, result), flush=True)
        for prompt, token, gap in result.differing:
            words = f"prompt {prompt} differs at token {token}, where the gap is {gap:.1e}"
            print(f"    {words}", file=sys.stderr, flush=True)
        failed |= result.equal < result.prompts
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
