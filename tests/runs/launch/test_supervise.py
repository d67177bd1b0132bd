"""Processes that are started together: output, signals, restarts and exit codes."""

import os
import signal
import sys
import threading
import time

import pytest

import dynexit.runs.launch.supervise as supervise_module
from dynexit.runs.launch.supervise import Started, supervise, worst

PROGRAM = """
import os, pathlib, signal, sys, time
rank, folder, fate = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
starts = folder / f"starts{rank}"
attempt = starts.stat().st_size if starts.exists() else 0
starts.open("a").write(".")
print(f"attempt {attempt}", flush=True)

def stop(number, frame):
    print(f"signal {number}", flush=True)
    sys.exit(143 if number != signal.SIGINT else 130)

for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, stop)
(folder / f"ready{rank}-{attempt}").touch()
kind, _, value = fate.partition(":")
if kind == "codes":  # one exit code for each attempt
    sys.exit(int(value.split(",")[attempt]))
if kind == "kill":
    os.kill(os.getpid(), signal.SIGKILL) if attempt == 0 else sys.exit(0)
time.sleep(60)
"""


def run(folder, fates, restarts=3, grace=0.2):
    """The exit code, the lines that were said, and how often each process started."""
    said = []

    def start():
        return [
            Started(
                [sys.executable, "-c", PROGRAM, str(k), str(folder), fate],
                folder / "logs" / f"{k}.log",
                dict(os.environ),
            )
            for k, fate in enumerate(fates)
        ]

    code = supervise(start, restarts, grace, said.append)
    return code, said, [(folder / f"starts{k}").stat().st_size for k in range(len(fates))]


def wait_for(*paths):
    end = time.monotonic() + 20
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    "fates, code, starts",
    [
        (["codes:0", "codes:0"], 0, 1),
        (["codes:143,0", "codes:143,0"], 0, 2),
        (["codes:143,142,0", "codes:142,143,0"], 0, 3),
        (["codes:0,0", "kill"], 0, 2),
        (["codes:143,1", "codes:142,142"], 1, 2),
        (["codes:2", "codes:142"], 2, 1),
        (["codes:143,143,143", "codes:143,143,143"], 143, 3),
    ],
)
def test_stopped_processes_are_restarted_and_failed_ones_are_not(tmp_path, fates, code, starts):
    found, said, started = run(tmp_path, fates, restarts=2)
    assert (found, started) == (code, [starts, starts])
    assert sum("restart" in line for line in said) == starts - 1


def test_output_has_the_process_before_each_line_and_is_kept_in_files(tmp_path):
    _, said, _ = run(tmp_path, ["codes:143,0", "codes:143,0"])
    assert said.count("0| attempt 0") == said.count("1| attempt 1") == 1
    assert (tmp_path / "logs" / "1.log").read_text() == "attempt 0\nattempt 1\n"


def test_one_process_has_no_prefix_and_a_progress_bar_shows_its_end(tmp_path):
    said = []
    program = "import sys; sys.stdout.write('step 1\\rstep 2\\nlast')"
    start = lambda: [Started([sys.executable, "-c", program], tmp_path / "0.log", dict(os.environ))]
    assert supervise(start, 0, 1, said.append) == 0
    assert said == ["step 2", "last"]


def test_a_long_progress_bar_is_shown_from_time_to_time(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise_module, "BAR", 0.3)
    program = (
        "import sys, time\n"
        "for k in range(12):\n"
        "    sys.stdout.write(f'\\rstep {k}'); sys.stdout.flush(); time.sleep(0.1)"
    )
    said = []
    start = lambda: [Started([sys.executable, "-c", program], tmp_path / "0.log", dict(os.environ))]
    assert supervise(start, 0, 1, said.append) == 0
    assert said[-1] == "step 11" and 3 <= len(said) <= 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_reaches_all_processes_and_ends_the_restarts(tmp_path, number):
    def send():
        wait_for(tmp_path / "ready0-0", tmp_path / "ready1-0")
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code, said, starts = run(tmp_path, ["wait", "wait"])
    sender.join()
    assert (code, starts) == (130 if number == signal.SIGINT else 143, [1, 1])
    assert f"0| signal {int(number)}" in said and f"1| signal {int(number)}" in said


def test_peers_of_a_process_that_failed_are_stopped(tmp_path):
    begin = time.monotonic()
    code, _, starts = run(tmp_path, ["codes:1", "wait"])
    assert (code, starts) == (1, [1, 1])
    assert time.monotonic() - begin < 15


def test_the_worst_code_is_a_failure_before_a_kill_before_a_stop():
    assert [worst(c) for c in ([0, 0], [0, 142], [137, 143], [143, 2, 137])] == [0, 142, 137, 2]
