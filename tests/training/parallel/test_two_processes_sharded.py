"""Two processes that hold different parts of the parameters: what each saves, and what is restored
on other numbers of processes and devices.
"""

import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dynexit.core.settings import Mesh
from dynexit.training.checkpointing import manifest
from dynexit.training.checkpointing.checkpoints import restore, restore_params
from dynexit.training.loop import fit
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import whole
from dynexit.training.state import create_state

PROGRAM = Path(__file__).with_name("two_processes.py")
FSDP = {"fsdp": 4}
TRAINING = {"steps": 8, "checkpoint_every": 4, "eval_every": 4, "keep": 3}


def run_two(toy, folder, mesh, **training):
    """What each of two processes printed: step, leaves that are split, sha256, loss."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    paths = [str(Path(toy.__file__).parent), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    options = json.dumps({"mesh": mesh, "training": {**TRAINING, **training}})
    start = lambda rank: subprocess.Popen(
        [sys.executable, PROGRAM, str(rank), port, folder, options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    processes = [start(0), start(1)]
    printed = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in printed]


def sha256(params):
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(params)))


def step_folder(folder, step):
    return folder / "checkpoints" / f"{step:08d}"


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def test_each_process_saves_its_slices_and_any_mesh_restores_them(toy, tmp_path):
    first, second = run_two(toy, tmp_path, FSDP)
    assert first == second and first[:2] == [8, 4]
    found = manifest.read(step_folder(tmp_path, 8))
    kernel = [s for s in found.slices if s.leaf == "params/blocks/kernel"]
    assert {(s.process, s.start, s.shape) for s in kernel} == {
        (0, (0, 0, 0), (3, 8, 4)),
        (1, (0, 0, 4), (3, 8, 4)),
    }
    assert [s.process for s in found.slices if s.leaf == "step"] == [0]
    params, step = restore_params(tmp_path, jax.eval_shape(toy.init, jax.random.key(0)))
    assert step == 8 and sha256(params).hexdigest() == first[2]
    assert restore_params(tmp_path, jax.eval_shape(toy.init, jax.random.key(0)), "best").step
    for sizes in (Mesh(), Mesh(fsdp=2), Mesh(fsdp=4)):
        state = create_state(toy.build(), toy.SETTINGS, 0, make_mesh(sizes))
        again = restore(tmp_path, state).tree
        assert sha256(whole(again.params)).hexdigest() == first[2]
        places = lambda tree: [leaf.sharding for leaf in jax.tree.leaves(tree)]
        assert places(again) == places(state)
    flip(step_folder(tmp_path, 8) / "arrays" / "1.safetensors")
    with pytest.warns(RuntimeWarning, match="00000008 is skipped"):
        assert restore(tmp_path, state).step == 4


@pytest.mark.slow
def test_a_damaged_slice_of_one_process_sends_both_to_the_checkpoint_before(toy, tmp_path):
    straight = run_two(toy, tmp_path, FSDP)
    for part in ("0", "1"):
        flip(step_folder(tmp_path, 8) / "arrays" / f"{part}.safetensors")
        assert run_two(toy, tmp_path, FSDP) == straight


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(toy, tmp_path):
    settings = dataclasses.replace(toy.SETTINGS, **TRAINING)
    straight = run_two(toy, tmp_path / "straight", FSDP)
    run_two(toy, tmp_path / "cut", FSDP)
    (step_folder(tmp_path / "cut", 8) / "manifest.json").unlink()
    with pytest.warns(RuntimeWarning, match="00000008 is skipped: it has no manifest"):
        fitted = fit(toy.build(), settings, tmp_path / "cut", 3, progress=False)
    assert fitted.step == 8 and fitted.metrics["loss"] == pytest.approx(straight[0][3], rel=1e-5)
