"""Two processes evaluate together: the figures of one process and of one device, bit for bit, and
each reads its own rows.
"""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AxisType

HERE = Path(__file__).parent
TIMED = {"rows_timed", "flops_ratio_blocks"}  # of the process that measures time


def run_two():
    """What each of two processes with two devices printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=2")
    started = [
        subprocess.Popen(
            [sys.executable, HERE / "evaluation_together.py", str(rank), port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": flags},
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=300) for process in started]
    for process, (_, errors) in zip(started, printed, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in printed]


@pytest.fixture(scope="module")
def two():
    return run_two()


def test_figures_are_those_of_one_process_and_of_one_device(alike, two):
    figures = runpy.run_path(str(HERE / "sharded_evaluation.py"))["figures"]
    digests = runpy.run_path(str(HERE / "evaluation_together.py"))["digests"]
    params = jax.jit(alike.model.init)(jax.random.key(0))
    mesh = jax.make_mesh((2, 2, 1), ("data", "fsdp", "model"), (AxisType.Auto,) * 3)
    first, second = (figures_of for figures_of, _ in two)
    for where in (mesh, None):
        assert digests(figures(alike, params, where)) == first
    assert {name for name in first if first[name] != second[name]} <= TIMED


def test_each_process_reads_its_own_rows(two):
    """Batches of 4 rows on 4 devices; the last of 43 rows is padded with the first."""
    for rank, (_, read) in enumerate(two):
        own = [[row % 43 for row in range(start, start + 8)] for start in (0, 16, 32)]
        if rank == 1:
            own = [[(row + 8) % 43 for row in rows] for rows in own]
        passes = [rows for rows in read if len(rows) == 8 and rows != list(range(8))]
        assert passes == [rows for rows in own if rows != list(range(8))] * 2
        assert (max(map(len, read)) == 43) == (rank == 0)  # the digest of the split
