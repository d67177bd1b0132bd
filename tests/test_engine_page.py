"""docs/engine.md is true: the counts of its table come out of its own example."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "engine.md").read_text()


@pytest.mark.slow
def test_the_table_of_devices_comes_from_the_example():
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, env=environment, check=True
    )
    printed = [float(line.split()[-1]) for line in run.stdout.splitlines()]
    rows = re.findall(r"^\| (?:8|64) \| (?:mixed|sorted) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert printed == [float(cell) for row in rows for cell in row.split(" | ")]
