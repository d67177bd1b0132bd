"""`launch sky`: options, the task that SkyPilot reads, and the way through its queue."""

import dataclasses
import json
import os
import subprocess

import pytest
from launch_tools import program, run_script

from dynexit.runs.launch.execute import LaunchError, execute, shell, write
from dynexit.runs.launch.sky import INSTALLS, Sky, plan_sky, read_queue, task_yaml

OPTIONS = Sky(accelerators="H100:8", storage="gs://bucket-one/runs", nodes=2, spot=True)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"accelerators": ""}, "accelerators must be given"),
        ({"accelerators": "H100 8"}, "accelerators must be NAME:COUNT such as H100:8"),
        ({"storage": ""}, "storage must be given"),
        ({"storage": "bucket"}, "storage must be a bucket such as gs://BUCKET, or a path"),
        ({"nodes": 0}, "nodes must lie in 1..10000, got 0"),
        ({"disk": 1}, "disk must lie in 50..100000 GB, got 1"),
        ({"image": "a\nb"}, "image must be one line"),
    ],
)
def test_wrong_options_are_named(changes, sentence):
    (found,) = dataclasses.replace(OPTIONS, **changes).validate()
    assert sentence in found
    assert OPTIONS.validate() == [] == Sky(accelerators="A100", storage="/nfs/runs").validate()


def test_the_task(job):
    options = dataclasses.replace(OPTIONS, infra="gcp/us-central1", image="docker:x", disk=200)
    assert task_yaml(options, job) == (
        "# A managed job of SkyPilot: sky jobs launch runs/first.job/task.yaml\n"
        'name: "first"\n'
        "num_nodes: 2\n"
        'workdir: "runs/first.job"\n'
        "resources:\n"
        '  accelerators: "H100:8"\n'
        '  infra: "gcp/us-central1"\n'
        "  use_spot: true\n"
        '  image_id: "docker:x"\n'
        "  disk_size: 200\n"
        "file_mounts:\n"
        "  /storage:\n"
        '    source: "gs://bucket-one/runs"\n'
        "    mode: MOUNT\n"
        "setup: bash setup.sh\n"
        "run: bash train.sh\n"
    )
    shared = task_yaml(Sky(accelerators="H100:8", storage="/nfs/runs"), job)
    assert "file_mounts" not in shared and "use_spot" not in shared


def test_the_files_and_commands(job):
    plan = plan_sky(OPTIONS, job)
    (launch,) = plan.request
    assert " ".join(launch.words) == (
        "sky jobs launch --name first --yes --detach-run runs/first.job/task.yaml"
    )
    assert [" ".join(c.words) for c in plan.bring] == [
        "mkdir -p runs/first",
        "gcloud storage rsync --recursive gs://bucket-one/runs/first runs/first",
    ]
    s3 = plan_sky(dataclasses.replace(OPTIONS, storage="s3://bucket"), job).bring[1]
    assert " ".join(s3.words) == "aws s3 sync s3://bucket/first runs/first"
    assert plan_sky(dataclasses.replace(OPTIONS, storage="/nfs/runs"), job).bring == ()
    texts = {f.path.name: f.content.decode() for f in plan.files if f.source is None}
    assert texts["requirements.txt"].splitlines()[1].startswith("jax[cuda12]==")
    assert ".skyignore" in texts  # the job folder may be one that git ignores
    tpu = plan_sky(dataclasses.replace(OPTIONS, accelerators="tpu-v5litepod-16"), job)
    texts = {f.path.name: f.content.decode() for f in tpu.files if f.source is None}
    assert texts["requirements.txt"].splitlines()[1].startswith("jax[tpu]==")
    assert "--coordinator" not in texts["train.sh"]  # JAX reads the metadata of a TPU


@pytest.mark.parametrize("codes, starts", [((0,), 1), ((143, 142, 0), 3), ((143, 1), 2), ((2,), 1)])
def test_a_node_trains_with_the_address_of_the_first(job, tmp_path, codes, starts):
    plan = plan_sky(OPTIONS, job)
    environment = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    code, calls, _, log = run_script(plan, "train.sh", tmp_path / "node", codes, environment)
    assert code == codes[-1] and len(calls) == starts
    assert calls[0].endswith(
        "--run /storage/first --cache /storage/compilation_cache --coordinator 10.0.0.1:8476 "
        "--processes 2 --process 1 --start-timeout 900"
    )
    assert log.count("a line of training") == starts


def test_a_node_shows_the_log_of_all_starts(job, tmp_path):
    _, _, output, log = run_script(
        plan_sky(Sky(accelerators="A100", storage="/nfs"), job), "train.sh", tmp_path / "node",
        (143, 0), {}, shown=3,
    )  # fmt: skip
    assert output.strip() == log.strip() and output.count("a line of training") == 2


def test_states_are_read():
    rows = lambda *words: json.dumps(
        [{"job_id": k, "job_name": "first", "status": word} for k, word in enumerate(words)]
        + [{"job_id": 9, "job_name": "other", "status": "FAILED"}]
    )
    read = lambda *words: read_queue(0, "Fetching ...\n" + rows(*words), "first")[0]
    assert [read("PENDING"), read("STARTING"), read("RUNNING"), read("RECOVERING")] == [
        "waiting", "waiting", "running", "running",
    ]  # fmt: skip
    assert read("FAILED", "RUNNING") == "running" and read("SUCCEEDED") == "done"
    assert {read("FAILED_SETUP"), read("FAILED_NO_RESOURCE"), read("CANCELLED")} == {"failed"}
    assert read() == "none"
    assert read_queue(1, "no server", "first") == ("unseen", "no server")
    assert read_queue(0, "[", "first")[0] == "unseen"


def test_through_the_queue(job, tools):
    row = lambda word: [0, json.dumps([{"job_id": 1, "job_name": "first", "status": word}])]
    tools("sky", {"queue": [[0, "[]"], row("PENDING"), row("RUNNING"), row("SUCCEEDED")]})
    tools("gcloud", {})
    said = []
    using = shell()._replace(sleep=lambda seconds: None)
    assert execute(plan_sky(OPTIONS, job), said.append, using=using, installs=INSTALLS) == 0
    calls = [call for call in tools.calls() if "queue" not in call]
    assert [call[:3] for call in calls] == [
        ["sky", "jobs", "launch"],
        ["gcloud", "storage", "rsync"],
    ]
    tools("sky", {"queue": [[1, "the server is down"]]})
    with pytest.raises(LaunchError, match="the server is down"):
        execute(plan_sky(OPTIONS, job), said.append, using=using)


@pytest.mark.slow
def test_skypilot_reads_the_task(job, tmp_path):
    sky = program("sky", "pip install skypilot")
    options = dataclasses.replace(OPTIONS, infra="gcp/us-central1", image="docker:python:3.12")
    write(plan_sky(options, job).files)
    source = (
        "import sys, sky\n"
        "task = sky.Task.from_yaml(sys.argv[1])\n"
        "(resources,) = task.resources\n"
        "print(task.name, task.num_nodes, task.workdir, resources.use_spot, "
        "dict(resources.accelerators), list(task.storage_mounts), task.run)"
    )
    read = subprocess.run(
        [str(sky.with_name("python")), "-c", source, str(job.files / "task.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert read.returncode == 0, read.stderr
    assert read.stdout.splitlines()[-1] == (
        "first 2 runs/first.job True {'H100': 8} ['/storage'] bash train.sh"
    )
