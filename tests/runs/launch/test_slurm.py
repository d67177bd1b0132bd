"""`launch slurm`: options, the batch script with its restarts, and the way through the queue."""

import dataclasses
import os
import subprocess
import sys

import pytest

from dynexit.runs.launch.execute import execute, shell, write
from dynexit.runs.launch.slurm import INSTALLS, Slurm, batch_script, plan_slurm, task_script

OPTIONS = Slurm(nodes=2, gpus=4, time="4:00:00", partition="long", restarts=2)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"nodes": 0}, "nodes must lie in 1..10000, got 0"),
        ({"gpus": -1}, "gpus must lie in 0..64, got -1"),
        ({"cpus": 0}, "cpus must lie in 1..1024, got 0"),
        ({"time": "4h"}, "time must be HOURS:MM:SS"),
        ({"options": '--comment="x'}, "options must be words of sbatch"),
        ({"partition": "a\nb"}, "partition must be one line"),
    ],
)
def test_wrong_options_are_named(changes, sentence):
    (found,) = dataclasses.replace(OPTIONS, **changes).validate()
    assert sentence in found
    assert OPTIONS.validate() == [] and Slurm(time="2-00:00:00").validate() == []


def test_the_batch_script(job):
    options = dataclasses.replace(
        OPTIONS, cpus=8, memory="64G", account="me", options='--comment="a b" --exclusive',
        setup="module load cuda",
    )  # fmt: skip
    script = batch_script(options, job)
    files = job.files.resolve()
    head = [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]
    assert head == [
        "--job-name=first", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4",
        "--cpus-per-task=8", "--mem=64G", "--time=4:00:00", "--partition=long", "--account=me",
        f"--chdir={files}", f"--output={files}/logs/batch.log", "--open-mode=append",
        "--signal=TERM@120", "--requeue", "'--comment=a b'", "--exclusive",
    ]  # fmt: skip
    assert script.index("module load cuda") < script.index("srun --output=logs/%t.log")
    assert "tee" not in script and "| srun" not in script
    task = task_script(options, job)
    assert f"{sys.executable} -m dynexit.cli.main train experiment/small_net.py --depth 6" in task
    assert f"--run {job.run.resolve()} --cache {job.folder.resolve()}/compilation_cache" in task
    assert f"PYTHONPATH={files}/source" in task
    for text in (script, task):
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    "codes, restarted, requeued, left",
    [
        ((0, 0), 0, False, "0"),
        ((143, 143), 0, True, None),
        ((142, 143), 1, True, None),
        ((143, 143), 2, False, "143"),
        ((1, 142), 0, False, "1"),
        ((2, 143), 0, False, "2"),
    ],
)
def test_the_batch_script_queues_a_stopped_job_again(
    job, tmp_path, codes, restarted, requeued, left
):
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "srun").write_text(
        "#!/usr/bin/env bash\n"
        + "".join(f"echo {c} >codes/{k}\n" for k, c in enumerate(codes))
        + f"exit {max(codes)}\n"
    )
    (folder / "scontrol").write_text('#!/usr/bin/env bash\necho "$@" >requeued\n')
    for name in ("srun", "scontrol"):
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarted),
    }
    done = subprocess.run(
        ["bash", "-c", batch_script(OPTIONS, job)], cwd=folder, env=environment, check=False
    )
    code = folder / "exit_code"
    assert (code.read_text().strip() if code.exists() else None) == left
    assert (folder / "requeued").exists() == requeued
    if requeued:
        assert (folder / "requeued").read_text() == "requeue 7\n"
    assert done.returncode == (0 if requeued else int(left))


def test_a_task_outlives_the_signal_and_keeps_the_code(job, tmp_path):
    """Bash waits for the process, which saves, and then writes its exit code."""
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\nimport signal, sys, time, os\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(143)))\n"
        "open('ready', 'w').close()\ntime.sleep(20)\n"
    )
    program.chmod(0o755)
    (tmp_path / "codes").mkdir()
    script = task_script(dataclasses.replace(OPTIONS, python=str(program)), job)
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"SLURM_PROCID": "3"},
        start_new_session=True,
    )  # fmt: skip
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
    os.killpg(process.pid, 15)
    assert process.wait(timeout=15) == 143
    assert (tmp_path / "codes" / "3").read_text() == "143\n"


def launched(job, tools, queue, code, detach=False):
    tools("sbatch", {"": [[0, "Submitted batch job 7"]]})
    tools("squeue", {"": queue})
    if code is not None:
        (job.files).mkdir(parents=True, exist_ok=True)
        (job.files / "exit_code").write_text(code)
    said = []
    found = execute(
        plan_slurm(OPTIONS, job), said.append, detach,
        shell()._replace(sleep=lambda seconds: None), INSTALLS,
    )  # fmt: skip
    return found, [c[0] for c in tools.calls() if c[0] == "sbatch"], said


def test_from_the_queue_to_the_end(job, tools):
    queue = [[0, ""], [0, "PENDING"], [0, "RUNNING"], [1, "slurmctld is away"], [0, "RUNNING"]]
    plan = plan_slurm(OPTIONS, job)
    ended = lambda seconds: (job.files / "exit_code").write_text("0")
    tools("sbatch", {"": [[0, ""]]})
    tools("squeue", {"": [*queue, [0, ""]]})
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == len(queue):
            ended(seconds)

    said = []
    assert execute(plan, said.append, using=shell()._replace(sleep=sleep)) == 0
    assert [c[0] for c in tools.calls()].count("sbatch") == 1
    assert "first: waiting pending" in said and "first: running" in said


def test_a_finished_job_is_not_submitted_again_and_a_failed_one_is(job, tools):
    assert launched(job, tools, [[0, ""]], "0")[:2] == (0, [])
    code, submitted, said = launched(job, tools, [[0, ""], [0, "PENDING"]], "1", detach=True)
    assert (code, submitted) == (0, ["sbatch"]) and "exit code 1" in said[0]


def running():
    """Whether a SLURM controller answers here."""
    try:
        return subprocess.run(["sinfo"], capture_output=True, timeout=5).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def test_sbatch_takes_the_script(job):
    if not running():
        pytest.skip("a running SLURM is wanted; Debian: apt-get install slurm-wlm")
    options = Slurm(time="0:10:00")
    plan = plan_slurm(options, job)
    write(plan.files)
    tested = subprocess.run(
        ["sbatch", "--test-only", str(job.files / "job.sbatch")], capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stderr
