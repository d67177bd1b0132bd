"""Signals and kills: nothing is lost, and the resumed run has the bits of an uninterrupted one."""

import functools
import random
import signal
import time
from pathlib import Path

from faults.command import (
    bits,
    counted,
    finish_training,
    pair,
    reads,
    recorded,
    records,
    saved,
    train,
    until,
)

STEPS, EVERY = 40, 5
EVALUATED, BATCHES = 10, 8  # updates between two evaluations, and batches of one
EVALS = ("--training.eval-every", EVALUATED)
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
SLOW = 0.02  # seconds that a batch takes


def straight(root, processes=1):
    """The bits of an uninterrupted run; it evaluates, which changes no bit of a checkpoint."""
    folder = root / f"straight-{processes}"
    if STEPS not in saved(folder):
        runs = [train(folder, *EVALS)] if processes == 1 else pair(folder, *EVALS)
        assert finish_training(runs, folder, STEPS), runs[0].text()
    return bits(folder, STEPS)


def stopped(root, count, processes):
    """SIGTERM to one of the processes after a random step."""
    wanted, dice = straight(root, processes), random.Random(processes)

    def case(k):
        folder, at = root / f"term-{processes}-{k}", dice.randrange(1, STEPS - 4)
        start = lambda: [train(folder, delay=SLOW)] if processes == 1 else pair(folder, delay=SLOW)
        runs = start()
        until(lambda: recorded(folder) >= at or not runs[0].alive)
        runs[dice.randrange(processes)].send(signal.SIGTERM)
        codes = [run.wait() for run in runs]
        if codes != [143] * processes:
            return f"{folder.name}: exit codes {codes}: {runs[0].text()[-300:]}"
        step = recorded(folder)
        if step not in saved(folder):
            return f"{folder.name}: stopped after step {step}, saved {saved(folder)}"
        if not finish_training(start(), folder, STEPS):
            return f"{folder.name}: the resumed run did not finish"
        return None if bits(folder, STEPS) == wanted else f"{folder.name}: other bits"

    name = f"SIGTERM after a random step, {processes} process{'es' if processes > 1 else ''}"
    return counted(name, [functools.partial(case, k) for k in range(count)])


def stopped_in_evaluation(root, count, processes, resume=True):
    """SIGTERM to one of the processes within an evaluation of training."""
    wanted, dice = straight(root, processes) if resume else None, random.Random(processes)
    history = records(root / f"straight-{processes}")

    def case(k):
        folder, slow = root / f"eval-{processes}-{k}", {"slow_evaluation": 0.15}
        step = EVALUATED * dice.randrange(1, STEPS // EVALUATED + 1)
        batch, start = dice.randrange(2, BATCHES - 3), train if processes == 1 else pair
        runs = start(folder, *EVALS, **slow)
        runs = [runs] if processes == 1 else runs
        before = (step // EVALUATED - 1) * BATCHES
        until(lambda: reads(runs[0]) >= before + batch or not runs[0].alive)
        runs[dice.randrange(processes)].send(signal.SIGTERM)
        codes = [run.wait() for run in runs]
        if codes != [143] * processes:
            return f"{folder.name}: exit codes {codes}: {runs[0].text()[-300:]}"
        ran = {reads(run) - before for run in runs}
        if len(ran) > 1 or not batch <= min(ran) < BATCHES:
            return f"{folder.name}: stopped after the batches {ran} of {BATCHES}"
        if max(saved(folder)) != step or "eval_accuracy" in records(folder)[-1]:
            return f"{folder.name}: saved {saved(folder)}, recorded {records(folder)[-1]}"
        if not resume:
            return None
        again = start(folder, *EVALS)
        again = [again] if processes == 1 else again
        # a run that was stopped in the last evaluation has the last checkpoint before it evaluates
        if not until(lambda: records(folder) == history or not any(run.alive for run in again)):
            return f"{folder.name}: the resumed run did not complete the records"
        if not finish_training(again, folder, STEPS):
            return f"{folder.name}: the resumed run did not finish"
        if records(folder) != history:
            return f"{folder.name}: other records"
        return None if bits(folder, STEPS) == wanted else f"{folder.name}: other bits"

    name = f"SIGTERM within an evaluation, {processes} process{'es' if processes > 1 else ''}"
    return counted(name, [functools.partial(case, k) for k in range(count)])


def killed(root, count):
    """kill -9 at a random moment of the run, saves included."""
    wanted, dice = straight(root), random.Random(9)

    def case(k):
        folder = root / f"kill-{k}"
        run = train(folder, delay=SLOW)
        if dice.random() < 0.5:  # while a checkpoint is written
            at = f"{EVERY * dice.randrange(1, STEPS // EVERY):08d}"
            until(lambda: (folder / "checkpoints" / at).exists() or not run.alive, look=0.001)
            time.sleep(dice.random() * 0.05)
        else:
            at = dice.randrange(1, STEPS)
            until(lambda: recorded(folder) >= at or not run.alive, look=0.001)
            time.sleep(dice.random() * 0.02)
        run.kill()
        lost = recorded(folder) - max([0, *saved(folder)])
        if lost > 2 * EVERY:  # one interval, and the steps made while one save ran
            return f"{folder.name}: lost {lost} steps"
        if not finish_training([train(folder)], folder, STEPS):
            return f"{folder.name}: the resumed run did not finish"
        return None if bits(folder, STEPS) == wanted else f"{folder.name}: other bits"

    return counted("kill -9 at a random moment", [functools.partial(case, k) for k in range(count)])


COMPILES = ("--unrolled", 400)


def catches(pid, number):
    """Whether a process handles a signal; after a wait where there is no `/proc`."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return time.sleep(0.5) is None
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def signals(root, numbers=SIGNALS, phases=("start-up", "compilation", "training", "evaluation")):
    """Each signal in each phase: exit code, seconds, and nothing lost."""

    def case(number, phase):
        name = f"{phase}-{signal.Signals(number).name}"
        folder = root / name
        words = (*COMPILES, "--salt", time.time() % 1) if phase == "compilation" else ()
        run = train(folder, *words, delay=SLOW if phase == "training" else 0.0)
        ready = {
            # Python itself handles SIGINT, before the command does
            "start-up": lambda: catches(run.pid, number) and catches(run.pid, signal.SIGTERM),
            # the lock is taken, and the program of the first update is compiled for long
            "compilation": lambda: (folder / "start.json").exists() and (time.sleep(3), True)[1],
            "training": lambda: recorded(folder) >= 7,
            "evaluation": lambda: "test split" in run.text(),
        }[phase]
        until(lambda: ready() or not run.alive)
        if not run.alive:
            return f"{name}: it ended before the signal"
        steps, began = recorded(folder), time.monotonic()
        if phase == "compilation" and steps:
            return f"{name}: compiled before the signal"
        run.send(number)
        code, seconds = run.wait(), time.monotonic() - began
        wanted = 130 if number == signal.SIGINT else 143
        if code != wanted:
            return f"{name}: exit code {code}: {run.text()[-300:]}"
        if seconds > 5:
            return f"{name}: {seconds:.1f} s"
        if "Traceback" in run.text():
            return f"{name}: a traceback: {run.text()[-300:]}"
        step = recorded(folder)
        return None if step in [0, *saved(folder)] else f"{name}: step {step} is not saved"

    cases = [functools.partial(case, number, phase) for phase in phases for number in numbers]
    return counted("signals in every phase", cases)
