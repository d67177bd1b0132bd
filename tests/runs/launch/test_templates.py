"""The files of experiments/launch are what the code composes for `experiments/digits_vit.py`.

As a program, this module writes them.
"""

from pathlib import Path

import pytest

from dynexit.runs.launch import host, job, slurm
from dynexit.runs.launch.job import Job
from dynexit.runs.launch.plan import show_steps
from dynexit.runs.launch.sky import Sky, plan_sky
from dynexit.runs.launch.slurm import Slurm, plan_slurm
from dynexit.runs.launch.tpu import Tpu, plan_tpu
from dynexit.runs.launch.xpk import Xpk, plan_xpk

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "experiments" / "launch"
RECORDS = ("job.json", "requirements.txt", "README", ".skyignore")
PYTHON = "/shared/environment/bin/python"


def templates():
    """Path below experiments/launch -> text."""
    digits = Job(ROOT / "experiments" / "digits_vit.py", (), "digits", Path("runs"))
    shared = digits._replace(folder=Path("/shared/runs"))
    plans = {
        "slurm": plan_slurm(Slurm(nodes=2, gpus=8, time="24:00:00", python=PYTHON), shared),
        "sky": plan_sky(
            Sky(accelerators="H100:8", nodes=2, spot=True, storage="gs://my-bucket"), digits
        ),
        "tpu": plan_tpu(
            Tpu(accelerator="v5litepod-16", zone="us-west4-a", storage="gs://my-bucket/runs"),
            digits,
        ),
        "xpk": plan_xpk(
            Xpk(accelerator="v5litepod-16", cluster="my-cluster", zone="us-west4-a",
                storage="my-storage", bucket="gs://my-bucket", image="python:3.12"),
            digits,
        ),
    }  # fmt: skip
    found = {}
    for target, plan in plans.items():
        for file in plan.files:
            if file.source is None and file.path.name not in RECORDS:
                found[f"{target}/{file.path.name}"] = file.content.decode()
        found[f"{target}/commands.sh"] = f"# {target}: the commands of a launch\n{show_steps(plan)}"
    return found


@pytest.fixture
def release(monkeypatch):
    """As an installed release composes them, with Python 3.12."""
    for module in (job, slurm):
        monkeypatch.setattr(module, "checkout", lambda: None)
    monkeypatch.setattr(job, "_requirement", lambda: "dynexit")
    monkeypatch.setattr(host, "python_version", lambda: "3.12")


def test_templates_are_what_the_code_composes(release):
    expected = templates()
    there = {p.relative_to(FOLDER).as_posix(): p for p in FOLDER.rglob("*") if p.is_file()}
    assert set(there) == set(expected)
    for name, text in expected.items():
        assert there[name].read_text() == text, name


def test_no_pipe_is_around_training():
    for path in FOLDER.rglob("*.s*"):
        text = path.read_text().replace("\\\n", " ")
        assert "tee" not in text.split()
        lines = [line for line in text.splitlines() if "dynexit train" in line]
        assert all("|" not in line and ">>" in line for line in lines if "train.log" in text)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        release.__wrapped__(patch)
        for name, text in templates().items():
            (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
            (FOLDER / name).write_text(text)
