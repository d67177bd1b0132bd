"""Two processes on one machine: a SIGTERM to one stops both at the same step, and resuming gives an
uninterrupted run's bits.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import dataclasses, hashlib, os, signal, sys, time
rank, port, folder, stop_at = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
import toy_experiment as toy
from dynexit.training.loop import fit

def batch(seed, step, size):
    time.sleep(0.02)
    if (rank, step) == (1, stop_at):
        os.kill(os.getpid(), signal.SIGTERM)
    return toy.batch(seed, step, size)

experiment = toy.build()
experiment = experiment._replace(train=experiment.train._replace(batch=batch))
settings = dataclasses.replace(toy.long_settings(), steps=60, eval_every=25)
fitted = fit(experiment, settings, folder, 3, progress=False)
bits = b"".join(jax.device_get(leaf).tobytes() for leaf in jax.tree.leaves(fitted.params))
print(fitted.step, fitted.stopped, hashlib.sha256(bits).hexdigest())
"""


def run_two(toy, folder, stop_at):
    """The last line of each of two processes: step, stopped, sha256 of the parameters."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    here = {
        **os.environ,
        "PYTHONPATH": str(Path(toy.__file__).parent),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    start = lambda rank: subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(rank), port, str(folder), str(stop_at)],
        stdout=subprocess.PIPE,
        text=True,
        env=here,
    )
    processes = [start(0), start(1)]
    printed = [
        process.communicate(timeout=120)[0].strip().splitlines()[-1].split()
        for process in processes
    ]
    assert [process.returncode for process in processes] == [0, 0]
    return printed


@pytest.mark.slow
def test_one_signal_stops_both_and_the_resumed_run_has_the_same_bits(toy, tmp_path):
    cut = run_two(toy, tmp_path / "cut", stop_at=15)
    assert cut[0] == cut[1] and cut[0][1] == "True" and 15 <= int(cut[0][0]) < 60
    resumed = run_two(toy, tmp_path / "cut", stop_at=-1)
    straight = run_two(toy, tmp_path / "straight", stop_at=-1)
    assert resumed[0] == resumed[1] == straight[0] == straight[1]
    assert straight[0][:2] == ["60", "False"]
