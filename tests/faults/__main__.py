"""`python -m tests.faults`: every fault at its full count, as a table.

python -m tests.faults [--only NAME ...] [--out FILE.json]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import damage, inputs, peers, stops

FULL = {
    "sigterm": lambda root: stops.stopped(root, 20, 1),
    "sigterm_two": lambda root: stops.stopped(root, 20, 2),
    "sigterm_evaluation": lambda root: stops.stopped_in_evaluation(root, 10, 1),
    "sigterm_evaluation_two": lambda root: stops.stopped_in_evaluation(root, 10, 2),
    "kill": lambda root: stops.killed(root, 50),
    "signals": stops.signals,
    "together": lambda root: peers.started_together(root, 20),
    "one_folder": lambda root: peers.in_one_folder(root, 20),
    "pairs": lambda root: peers.started_in_pairs(root, 20),
    "unshared": lambda root: peers.not_shared(root, 10),
    "missing": peers.missing,
    "peer": lambda root: peers.killed_peer(root, 10),
    "damaged": damage.damaged,
    "flips": lambda root: damage.flipped(root, 200),
    "crafted": damage.crafted,
    "streams": inputs.dead_streams,
    "settings": inputs.wrong_settings,
}


def line(result):
    return f"| {result.name} | {result.wanted} | {result.got} | {result.seconds:.0f} |"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--only", nargs="+", choices=FULL, default=list(FULL))
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    results = []
    print("| fault | wanted | got | seconds |\n|---|---|---|---|", flush=True)
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix=f"faults-{name}-") as root:
            result = FULL[name](Path(root))
        print(line(result), flush=True)
        for note in result.notes:
            print(f"    {note}", file=sys.stderr, flush=True)
        results.append({"fault": name, **result._asdict(), "time": time.strftime("%F %T")})
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(each["got"] == each["wanted"] for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
