"""Eight virtual devices, 4 x 2, against one, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("generation_on_eight_devices.py")
DEVICES = "--xla_force_host_platform_device_count="
PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7]]  # devices along "model"


@pytest.mark.slow
def test_eight_devices_write_the_text_of_one():
    """Shards of four rows each, heads over two devices: every shard ends its loop by itself."""
    kinds = ["none", "early_exit", "prompt_lookup"]
    flags = os.environ["XLA_FLAGS"].replace(f"{DEVICES}4", f"{DEVICES}8")
    command = [sys.executable, PROGRAM, *kinds]
    environment = os.environ | {"XLA_FLAGS": flags}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["kind"] for line in lines] == kinds
    for line in lines:
        assert all(line["equal"]) and line["ended"]
        assert line["queues"] == [4, 4, 3, 3]  # of two slots
        assert len(set(line["rounds"])) == 4 and max(line["rounds"]) < line["one_device"]
        assert (line["accepted"] > 0) == (line["kind"] != "none")
        # the compiled program was read, and within its loops only pairs of devices wait
        assert line["programs"] == 1 and line["in_loops"] == [["all-reduce", PAIRS]]
