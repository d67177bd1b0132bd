"""`dynexit launch sky`: GPUs or TPUs of a cloud or of Kubernetes, as a managed job of SkyPilot."""

import dataclasses
import json
import re

from dynexit.runs.launch.host import setup_script, train_script
from dynexit.runs.launch.job import Job, pack, text
from dynexit.runs.launch.plan import Command, Look, Plan, State, last_line
from dynexit.runs.launch.target import Target, given, matches, one_line
from dynexit.runs.launch.tpu import START

INSTALLS = {
    "sky": "`pip install 'skypilot[gcp]'` (or another cloud) in an environment of its own, then "
    "`sky check`",
    "gcloud": "install the Google Cloud CLI, then `gcloud auth login`",
    "aws": "install the AWS CLI, then `aws configure`",
}
ACCELERATORS = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(:\d+)?")
SOURCE = re.compile(
    r"(gs|s3|r2|cos|oci|nebius)://[A-Za-z0-9][A-Za-z0-9._-]+(/[\w.-]+)*/?|/[\w./-]+"
)
MOUNT = "/storage"
PORT = 8476
WAITING = ("PENDING", "SUBMITTED", "STARTING")
ENDED = ("CANCELLED", "CANCELLING", "FAILED")


@dataclasses.dataclass(frozen=True)
class Sky(Target):
    """Options of `dynexit launch sky`.

    Example:
      >>> Sky(accelerators="H100:8", storage="gs://bucket", nodes=2).validate()
      []
    """

    accelerators: str = ""
    """of each node, such as H100:8, or tpu-v5litepod-16"""
    nodes: int = 1
    """nodes that train together, with one process each"""
    storage: str = ""
    """bucket that keeps the runs, such as gs://BUCKET, or an absolute path that all nodes share"""
    infra: str | None = None
    """cloud, region and zone, such as gcp/us-central1, aws or k8s; by default the cheapest"""
    spot: bool = False
    """cheaper, and may be preempted: SkyPilot then finds other nodes and the run resumes"""
    image: str | None = None
    """image of the nodes, such as docker:IMAGE"""
    disk: int | None = None
    """GB of disk of each node"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = super().validate() + given(self, "accelerators", "storage")
        if self.accelerators:
            found += matches(self, ACCELERATORS, "NAME:COUNT such as H100:8", "accelerators")
        if self.storage:
            found += matches(self, SOURCE, "a bucket such as gs://BUCKET, or a path", "storage")
        if not 1 <= self.nodes <= 10_000:
            found.append(f"nodes must lie in 1..10000, got {self.nodes}")
        if self.disk is not None and not 50 <= self.disk <= 100_000:
            found.append(f"disk must lie in 50..100000 GB, got {self.disk}")
        return found + one_line(self, "infra", "image")


def plan_sky(options: Sky, job: Job) -> Plan:
    """The plan of a launch by SkyPilot; its controller recovers the job after a preemption."""
    tpu = options.accelerators.lower().startswith("tpu")
    shared = MOUNT if "://" in options.storage else options.storage.rstrip("/")
    task = job.files / "task.yaml"
    launch = ("sky", "jobs", "launch", "--name", job.name, "--yes", "--detach-run", str(task))
    queue = ("sky", "jobs", "queue", "--all", "--output", "json")

    def read(code: int, output: str) -> tuple[State, str]:
        return read_queue(code, output, job.name)

    return Plan(
        job.name,
        (
            *pack(job, "tpu" if tpu else "cuda12"),
            text(job.files / "setup.sh", setup_script(shared, options.setup)),
            text(
                job.files / "train.sh",
                train_script(job, shared, options.restarts, _flags(options, tpu), detached=False),
            ),
            text(job.files / ".skyignore", "logs\n"),  # else what git ignores is left behind
            text(task, task_yaml(options, job)),
        ),
        (Look(Command(queue, "the state of the job"), read),),
        (Command(launch, "submit the job"),),
        (),
        (),
        _bring(options, job),
        (),
        Command(("sky", "jobs", "cancel", "--name", job.name, "--yes"), "cancel the job"),
        job.run,
        restarts=options.restarts,
    )


def task_yaml(options: Sky, job: Job) -> str:
    """The task as SkyPilot reads it."""
    quote = json.dumps  # a JSON text is a YAML text
    resources = {
        "accelerators": options.accelerators,
        "infra": options.infra,
        "use_spot": options.spot or None,
        "image_id": options.image,
        "disk_size": options.disk,
    }
    lines = [f"  {k}: {quote(value)}" for k, value in resources.items() if value is not None]
    mounts = ""
    if "://" in options.storage:
        source = quote(options.storage.rstrip("/"))
        mounts = f"file_mounts:\n  {MOUNT}:\n    source: {source}\n    mode: MOUNT\n"
    return f"""\
# A managed job of SkyPilot: sky jobs launch {(job.files / "task.yaml").as_posix()}
name: {quote(job.name)}
num_nodes: {options.nodes}
workdir: {quote(job.files.as_posix())}
resources:
{chr(10).join(lines)}
{mounts}setup: bash setup.sh
run: bash train.sh
"""


def read_queue(code: int, output: str, name: str) -> tuple[State, str]:
    """The state of the newest job of a name, from `sky jobs queue --output json`.

    Example:
      >>> read_queue(0, '[{"job_id": 1, "job_name": "first", "status": "RUNNING"}]', "first")
      ('running', 'running')
    """
    start = output.find("[")
    try:
        rows = json.loads(output[start:]) if start >= 0 and not code else None
    except ValueError:
        rows = None
    if rows is None:
        return "unseen", last_line(output)
    mine = [row for row in rows if row.get("job_name") == name]
    if not mine:
        return "none", ""
    word = str(max(mine, key=lambda row: row.get("job_id") or 0)["status"]).rpartition(".")[2]
    if word == "SUCCEEDED":
        return "done", ""
    if word.startswith(ENDED):
        return "failed", f"{word.lower()}; see `sky jobs logs --name {name}`"
    return ("waiting" if word in WAITING else "running"), word.lower()


def _flags(options: Sky, tpu: bool) -> str:
    """Where the first node is, from SkyPilot's variables; a TPU says so itself."""
    if tpu or options.nodes == 1:
        return f"--start-timeout {START}" if tpu else ""
    return (
        f'--coordinator "${{SKYPILOT_NODE_IPS%%[[:space:]]*}}:{PORT}" '
        '--processes "$SKYPILOT_NUM_NODES" --process "$SKYPILOT_NODE_RANK" '
        f"--start-timeout {START}"
    )


def _bring(options: Sky, job: Job) -> tuple[Command, ...]:
    there = f"{options.storage.rstrip('/')}/{job.name}"
    words = {
        "gs": ["gcloud", "storage", "rsync", "--recursive", there, str(job.run)],
        "s3": ["aws", "s3", "sync", there, str(job.run)],
    }.get(options.storage.partition("://")[0])
    if words is None:
        return ()
    return (
        Command(("mkdir", "-p", str(job.run)), "make the folder here"),
        Command(tuple(words), "bring the run folder"),
    )
