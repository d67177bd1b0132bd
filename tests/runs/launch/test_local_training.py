"""`dynexit launch local` trains: stopped and resumed, it ends with the bits of a run that was not."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dynexit.cli.train import FLAGS

EXPERIMENT = '''"""A small transformer on digits."""
import dataclasses
import dynexit as dx

@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """Digits."""
    model: dx.models.Vit = dx.models.Vit(patch=4, stride=4, width=16, depth=2, heads=2)
    method: dx.methods.ConfidenceExits = dx.methods.ConfidenceExits()
    data: dx.data.Digits = dx.data.Digits(shift=1)
    training: dx.Training = dx.Training(
        steps=1500, batch_size=32, checkpoint_every=200, log_every=10, eval_every=0
    )
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=64, repeats=1, timed_rows=64, tune=False)

SMOKE = Settings()
'''


def launch(folder, name, processes):
    """Starts the command in a folder, without pytest's options for XLA."""
    words = ["launch", "local", "small.py", "--name", name, "--processes", str(processes)]
    cleared = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    with (folder / f"{name}.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "dynexit.cli.main", *words],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**cleared, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        )


def step_of(run):
    """The last step in the records of a run; 0 where there is none."""
    try:
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, ValueError, IndexError):
        return 0


def wait_for_step(run, step, process):
    end = time.monotonic() + 240
    while step_of(run) < step:
        assert process.poll() is None and time.monotonic() < end, run
        time.sleep(0.05)


def digest(run):
    """The step and the sha256 of all parameters."""
    import jax

    from dynexit.runs.trained import trained

    opened = trained(run)
    leaves = jax.tree.leaves(opened.params)
    return opened.step, hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


CONNECTED = pytest.mark.skipif(
    "coordinator" not in {flag.name for flag in FLAGS},
    reason="`dynexit train` has no --coordinator yet",
)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=CONNECTED)])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path, processes):
    (tmp_path / "small.py").write_text(EXPERIMENT)
    straight, cut = tmp_path / "runs" / "straight", tmp_path / "runs" / "cut"
    output = lambda name: (tmp_path / f"{name}.txt").read_text()
    assert launch(tmp_path, "straight", processes).wait(timeout=400) == 0, output("straight")

    # a signal to the launcher stops all processes; it does not restart them
    stopped = launch(tmp_path, "cut", processes)
    wait_for_step(cut, 100, stopped)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=120) == 143, output("cut")
    assert 0 < step_of(cut) < 1500 and "restart" not in output("cut")

    # a signal to one process stops all; the launcher restarts them
    again = launch(tmp_path, "cut", processes)
    wait_for_step(cut, step_of(cut) + 100, again)
    os.kill(json.loads((cut / "lock.json").read_text())["process"], signal.SIGTERM)
    assert again.wait(timeout=400) == 0, output("cut")
    assert output("cut").count("restart 1 of 10") == 1
    assert digest(cut) == digest(straight)
