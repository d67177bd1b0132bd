"""`launch xpk`: options, commands, the container's script, and what XPK makes of them."""

import dataclasses
import os
import subprocess

import pytest
from launch_tools import program, run_script

from dynexit.runs.launch.execute import execute, shell, write
from dynexit.runs.launch.xpk import INSTALLS, Xpk, plan_xpk, read_list

OPTIONS = Xpk(
    accelerator="v5litepod-16", cluster="cluster", zone="us-west4-a", project="mine",
    storage="runs", bucket="gs://bucket", restarts=5,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"accelerator": "v5e-16"}, "accelerator must be a TPU type"),
        ({"cluster": ""}, "cluster must be given"),
        ({"cluster": "My"}, "cluster must be lower-case letters"),
        ({"zone": "us-west4"}, "zone must be a zone"),
        ({"storage": ""}, "storage must be given"),
        ({"bucket": "bucket"}, "bucket must be gs://BUCKET/FOLDER"),
        ({"mount": "runs"}, "mount must be an absolute path"),
        ({"priority": "urgent"}, "priority must be one of very-low, low"),
        ({"slices": 0}, "slices must lie in 1..1024, got 0"),
        ({"grace": 5}, "grace must lie in 30..3600 seconds, got 5"),
    ],
)
def test_wrong_options_are_named(changes, sentence):
    (found,) = dataclasses.replace(OPTIONS, **changes).validate()
    assert sentence in found
    assert OPTIONS.validate() == []
    assert dataclasses.replace(OPTIONS, accelerator="tpu7x-16").validate() == []


def test_the_commands(job):
    plan = plan_xpk(dataclasses.replace(OPTIONS, slices=2, image="python:3.12"), job)
    (create,) = plan.request
    assert " ".join(create.words) == (
        "xpk workload create --workload first --cluster cluster --zone us-west4-a --project mine "
        "--tpu-type v5litepod-16 --num-slices 2 --storage runs --priority medium --max-restarts 5 "
        "--termination-grace-period-seconds 120 --base-docker-image python:3.12 "
        "--script-dir runs/first.job --command exec bash start.sh"
    )
    assert " ".join(plan.bring[1].words) == (
        "gcloud storage rsync --recursive gs://bucket/first runs/first --project mine"
    )
    assert plan_xpk(dataclasses.replace(OPTIONS, bucket=None), job).bring == ()
    (delete,) = plan.clear
    assert " ".join(delete.words) == (
        "xpk workload delete --workload first --cluster cluster --zone us-west4-a --project mine "
        "--force"
    )


def test_the_container_becomes_the_training_process(job, tmp_path):
    plan = plan_xpk(dataclasses.replace(OPTIONS, setup="echo prepared"), job)
    code, calls, output, log = run_script(plan, "start.sh", tmp_path / "pod", (143,), {})
    assert code == 143 and "prepared" in output
    assert calls == [
        "train experiment/small_net.py --depth 6 --run /runs/first --cache /runs/compilation_cache "
        "--start-timeout 900"
    ]
    assert "a line of training" in log


def test_a_pod_without_the_storage_ends_with_2(job, tmp_path):
    plan = plan_xpk(OPTIONS, job)
    code, calls, output, _ = run_script(plan, "start.sh", tmp_path / "pod", (0,), {}, mounted=False)
    assert code == 2 and calls == [] and "/runs is not mounted" in output


def test_states_are_read():
    head = "Jobset Name  Created Time  Status  Status Message  Status Time\n"
    row = "first   2026-01-01T00:00:00Z   {}   {}   2026-01-01T00:00:00Z\n"
    read = lambda status, message: read_list(0, head + row.format(status, message), "first")[0]
    assert read("QuotaReserved", "Quota reserved") == "waiting"
    assert read("Admitted", "The workload is admitted") == "running"
    assert read("Finished", "jobset completed successfully") == "done"
    assert read("Finished", "jobset failed due to one or more job failures") == "failed"
    assert read_list(0, head + row.replace("first", "first-2").format("Admitted", ""), "first") == (
        "none",
        "",
    )
    assert read_list(1, "no cluster", "first") == ("unseen", "no cluster")


def test_from_the_queue_to_the_end(job, tools):
    row = lambda status, message: [0, f"first   time   {status}   {message}\n"]
    tools(
        "xpk",
        {"list": [[0, ""], row("Admitted", "ok"), row("Finished", "completed successfully")]},
    )
    tools("gcloud", {})
    using, said = shell()._replace(sleep=lambda seconds: None), []
    assert execute(plan_xpk(OPTIONS, job), said.append, using=using, installs=INSTALLS) == 0
    calls = [call[:3] for call in tools.calls() if "list" not in call]
    assert calls == [["xpk", "workload", "create"], ["gcloud", "storage", "rsync"]]
    assert (job.files / "start.sh").is_file()


@pytest.mark.slow
def test_xpk_makes_a_jobset_of_it(job, tmp_path):
    """Exit codes of 128 and more restart the workload, 1 and 2 do not."""
    xpk = program("xpk", "pip install xpk")
    plan = plan_xpk(OPTIONS, job)
    write(plan.files)
    made = tmp_path / "jobset.yaml"
    dry = ["--dry-run", "--skip-validation"]
    for command in (*plan.request, plan.looks[0].command, *plan.clear):
        more = ["--output-manifest-file", str(made)] if command in plan.request else []
        ran = subprocess.run(
            [str(xpk), *command.words[1:], *dry, *more],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    text = made.read_text()
    assert "maxRestarts: 5" in text and "terminationGracePeriodSeconds: 120" in text
    assert "(exec bash start.sh) & PID=$!" in text
    codes = text.partition("onExitCodes:")[2].partition("values:")[2].partition("\n")[0]
    restarted = {int(word) for word in codes.strip(" []").split(",")}
    assert {142, 143} <= restarted and not restarted & {0, 1, 2}
