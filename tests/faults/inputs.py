"""Wrong settings, and streams that nobody reads."""

import functools
import resource
import subprocess
import sys
import time
from pathlib import Path

from faults.command import TOY, Run, bits, counted, finish_training
from faults.stops import STEPS, straight

DIGITS = Path(__file__).parents[2] / "experiments" / "digits_vit.py"
WRONG = """
--training.steps 0
--training.steps -5
--training.steps ten
--training.steps 9999999999
--training.batch-size 0
--training.batch-size 99999999
--training.learning-rate inf
--training.learning-rate nan
--training.learning-rate -1
--training.warmup 2
--training.schedule step
--training.optimizer adam
--training.weight-decay -1
--training.clip -1
--training.precision float16
--training.checkpoint-every 0
--training.keep 0
--training.log-every 0
--training.eval-every -1
--training.eval-rows 0
--training.wandb maybe
--model.width 0
--model.width 130
--model.width 128000000
--model.depth 0
--model.depth 100000000
--model.heads 0
--model.heads 3
--model.patch 9
--model.stride 0
--data.shift 100
--data.shift -1
--seed -1
--seed 4294967296
--seed 99999999999999999999
--calibration.accept-loss -1
--calibration.budget 2
--evaluation.batch-size 0
--evaluation.repeats 0
--model.dpeth 3
--stall-minutes -1
--start-timeout 0
""".strip().splitlines()


def wrong_settings(root, settings=tuple(WRONG)):
    """Each is refused with code 2 and a message that names the field and the value."""

    def case(words):
        field, value = words.split()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "dynexit.cli.main", "train", DIGITS, field, value]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        name = field.lstrip("-").replace("-", "_")
        if done.returncode != 2 or "Traceback" in done.stderr:
            return f"{words}: exit code {done.returncode}: {done.stderr[-300:]}"
        said = done.stderr.replace("-", "_")
        known = "did you mean" not in said
        if name.rpartition(".")[2] not in said or (known and value.lstrip("-") not in done.stderr):
            return f"{words}: not named: {done.stderr[-300:]}"
        return f"{words}: {used:.1f} s of CPU time" if used > 2 else None

    cases = [functools.partial(case, words) for words in settings]
    return counted("wrong settings, under 2 s of CPU time", cases)


def dead_streams(root, kinds=("stdout", "stderr", "both", "closed")):
    """Standard output or error is a pipe without a reader, or closed: training goes on."""
    wanted = straight(root)

    def case(kind):
        folder = root / f"dead-{kind}"
        words = ["train", TOY, "--run", folder]
        run = Run(words, root, root / f"dead-{kind}.log", {"DEAD_STREAMS": kind})
        began = time.monotonic()
        if not finish_training([run], folder, STEPS):
            return f"{kind}: ended after {time.monotonic() - began:.0f} s"
        return None if bits(folder, STEPS) == wanted else f"{kind}: other bits"

    cases = [functools.partial(case, kind) for kind in kinds]
    return counted("standard streams that nobody reads", cases)
