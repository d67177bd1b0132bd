"""Several processes: starts, folders that are not shared, and a peer that dies."""

import functools
import json
import signal
import time

from faults.command import (
    TOY,
    Run,
    bits,
    counted,
    finish_training,
    pair,
    recorded,
    records,
    saved,
    train,
    until,
)  # fmt: skip
from faults.stops import SLOW, STEPS, straight

SHORT = ("--training.steps", 2)
TIMED = ("seconds", "speedup", "efficiency", "timed_points", "full_program", "command", "hardware")


def started_together(root, count):
    """Starts at the same moment with the default run folder: each has its own."""
    began = time.monotonic()
    where = root / "together"
    where.mkdir()
    words = ["train", TOY, *SHORT]
    runs = [Run(words, where, where / f"{k}.log", {}) for k in range(count)]
    last = lambda: [path for path in where.glob("runs/*") if 2 in saved(path)]
    until(lambda: len(last()) == count or not any(run.alive for run in runs))
    folders = last()
    wrong = [run.text()[-300:] for run in runs if run.kill() not in (0, 137)]
    owned = [folder for folder in folders if (folder / "settings.json").exists()]
    got = len({folder.name for folder in owned}) - len(wrong)
    return counted("simultaneous starts, a folder each", ())._replace(
        wanted=count, got=got, seconds=time.monotonic() - began, notes=tuple(wrong)
    )


def in_one_folder(root, count):
    """Starts at the same moment in one folder: one trains, the others are refused by name."""
    began = time.monotonic()
    folder = root / "one-folder"
    logs = [root / f"one-folder-{k}.log" for k in range(count)]
    runs = [train(folder, log=log, delay=0.5) for log in logs]
    until(lambda: sum(not run.alive for run in runs) >= count - 1 and recorded(folder) > 0)
    alive = [run for run in runs if run.alive]
    codes = [run.wait() for run in runs if not run.alive]
    refused = sum("is in use by process" in run.text() for run in runs)
    for run in alive:
        run.kill()
    good = len(alive) == 1 and codes == [1] * (count - 1) and refused == count - 1
    ends = [run.text()[-300:] for run in runs]
    notes = () if good else (f"alive {len(alive)}, codes {codes}, refused {refused}: {ends}",)
    return counted("simultaneous starts in one folder: one trains", ())._replace(
        wanted=count, got=count if good else 0, seconds=time.monotonic() - began, notes=notes
    )


def started_in_pairs(root, count):
    """Two processes start, train, evaluate and end: with the files of one process on two devices."""
    alone = root / "pair-alone"
    words = (*SHORT, "--training.eval-every", 1)
    run = train(alone, *words, devices=2)
    assert run.wait() == 0, run.text()
    wanted = contents(alone)

    def case(k):
        folder = root / f"pair-{k}"
        runs = pair(folder, *words)
        codes = [run.wait() for run in runs]
        if codes != [0, 0]:
            return f"{folder.name}: exit codes {codes}: {runs[0].text()[-200:]}"
        found = contents(folder)
        differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        return f"{folder.name}: {differing} differ" if differing else None

    return counted("two-process starts", [functools.partial(case, k) for k in range(count)])


def contents(folder):
    """What a finished run folder has and is no time: the content of tables, the names of others."""
    found = {path.name: None for path in folder.iterdir() if path.name != "start.json"}
    for name in ("report.json", "calibration.json"):
        found |= {f"{name} {key}": v for key, v in json.loads((folder / name).read_text()).items()}
    found = {name: v for name, v in found.items() if not any(word in name for word in TIMED)}
    found["rows.csv"] = (folder / "rows.csv").read_text()
    return found | {"records": records(folder)}


def not_shared(root, count):
    """Each of two processes has a run folder of its own under the same name."""

    def case(k):
        folders = []
        for rank in range(2):
            host = root / f"unshared-{k}-{rank}"
            host.mkdir()
            folders.append(host / "run")
        runs = pair(None, folders=folders)
        codes = [run.wait() for run in runs]
        seconds = time.monotonic() - runs[0].began
        if codes != [2, 2]:
            return f"{k}: exit codes {codes}: {runs[0].text()[-300:]}"
        named = all("process 1 (host " in run.text().split("is not shared")[-1] for run in runs)
        if not named:
            return f"{k}: not named: {runs[0].text()[-300:]}"
        trained = [folder for folder in folders if recorded(folder)]
        if trained or seconds > 30:
            return f"{k}: {seconds:.0f} s, trained in {trained}"
        return None

    cases = [functools.partial(case, k) for k in range(count)]
    return counted("run folder not shared between hosts", cases)


def missing(root, timeout=6):
    """One of two processes is never started."""

    def case(rank):
        (run,) = pair(root / f"missing-{rank}", "--start-timeout", timeout, ranks=[rank])
        code, seconds = run.wait(), time.monotonic() - run.began
        other = "process 0 did not answer" if rank else "process 1 of 2 did not come"
        if code != 1 or other not in run.text() or f"pid {run.pid}" not in run.text():
            return f"{rank}: exit code {code}: {run.text()[-300:]}"
        return None if seconds < 30 else f"{rank}: {seconds:.0f} s"

    return counted("one of two processes does not come", [lambda: case(0), lambda: case(1)])


def killed_peer(root, count, restart=True):
    """kill -9 to one of two processes: the other names it, and a restart has the same bits."""
    wanted = straight(root, 2) if restart else None

    def case(k):
        folder, rank = root / f"peer-{k}", k % 2
        runs = pair(folder, delay=SLOW)
        until(lambda: recorded(folder) >= 7 + k or not runs[0].alive)
        began = time.monotonic()
        runs[rank].send(signal.SIGKILL)
        survivor = runs[1 - rank]
        code, seconds = survivor.wait(), time.monotonic() - began
        if code != 142 or seconds > 30:
            return f"{k}: exit code {code} after {seconds:.0f} s: {survivor.text()[-300:]}"
        last = survivor.text().strip().splitlines()[-1]
        if f"process {rank} (host " not in last or f"pid {runs[rank].pid})" not in last:
            return f"{k}: the last line is {last!r}"
        if not restart:
            return None
        if not finish_training(pair(folder), folder, STEPS):
            return f"{k}: the restarted run did not finish"
        return None if bits(folder, STEPS) == wanted else f"{k}: other bits"

    return counted("a peer is killed", [functools.partial(case, k) for k in range(count)])
