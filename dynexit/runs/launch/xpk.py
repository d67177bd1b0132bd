"""`dynexit launch xpk`: TPU slices of a GKE cluster, by XPK."""

import dataclasses
import re
import shlex

from dynexit.runs.launch.host import SHOWN
from dynexit.runs.launch.job import CACHE, Job, pack, python_version, text, train_words
from dynexit.runs.launch.plan import Command, Look, Plan, State, last_line
from dynexit.runs.launch.target import BUCKET, ZONE, Target, given, matches, one_line
from dynexit.runs.launch.tpu import START, wrong_accelerator

INSTALLS = {
    "xpk": "`pip install xpk` in an environment of its own, then `gcloud auth login`",
    "gcloud": "install the Google Cloud CLI, then `gcloud auth login`",
}
PRIORITIES = ("very-low", "low", "medium", "high", "very-high")
LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Xpk(Target):
    """Options of `dynexit launch xpk`.

    Example:
      >>> options = Xpk(accelerator="v6e-16", cluster="c", zone="us-east5-b", storage="runs")
      >>> options.validate()
      []
    """

    accelerator: str = ""
    """TPU type of a slice, such as v5litepod-16 or v6e-256"""
    cluster: str = ""
    """GKE cluster that XPK made"""
    zone: str = ""
    """of the cluster, such as us-east5-b"""
    project: str | None = None
    """Google Cloud project; by default gcloud's"""
    slices: int = 1
    """slices that train together"""
    storage: str = ""
    """name of the storage that `xpk storage attach` gave to the cluster; the runs are kept there"""
    mount: str = "/runs"
    """mount point of the storage"""
    bucket: str | None = None
    """gs://BUCKET/FOLDER of the storage, from which the run folder is brought back; None for a
    storage that is no bucket
    """
    image: str = f"python:{python_version()}"
    """base image; XPK adds the job folder to it. Packages that the image lacks are installed at
    each start
    """
    priority: str = "medium"
    """very-low, low, medium, high or very-high"""
    grace: int = 120
    """seconds from the first signal of a preemption to the last"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = super().validate() + given(self, "accelerator", "cluster", "zone", "storage")
        found += wrong_accelerator(self.accelerator, ("tpu7x",))
        if self.zone:
            found += matches(self, ZONE, "a zone such as us-east5-b", "zone")
        for name in ("cluster", "storage"):
            if getattr(self, name):
                found += matches(self, LABEL, "lower-case letters, digits and hyphens", name)
        found += matches(self, BUCKET, "gs://BUCKET/FOLDER", "bucket")
        if self.priority not in PRIORITIES:
            found.append(f"priority must be one of {', '.join(PRIORITIES)}, got {self.priority!r}")
        if not 1 <= self.slices <= 1024:
            found.append(f"slices must lie in 1..1024, got {self.slices}")
        if not 30 <= self.grace <= 3600:
            found.append(f"grace must lie in 30..3600 seconds, got {self.grace}")
        if not self.mount.startswith("/"):
            found.append(f"mount must be an absolute path, got {self.mount!r}")
        return found + one_line(self, "project", "mount", "image")


def plan_xpk(options: Xpk, job: Job) -> Plan:
    """The plan of a launch on a GKE cluster; the cluster restarts what was stopped."""
    where = ["--cluster", options.cluster, "--zone", options.zone]
    where += ["--project", options.project] if options.project else []
    named = ["--workload", job.name, *where]
    create = ["xpk", "workload", "create", *named]
    create += ["--tpu-type", options.accelerator, "--num-slices", str(options.slices)]
    create += ["--storage", options.storage, "--priority", options.priority]
    create += ["--max-restarts", str(options.restarts)]
    create += ["--termination-grace-period-seconds", str(options.grace)]
    create += ["--base-docker-image", options.image, "--script-dir", str(job.files)]
    create += ["--command", "exec bash start.sh"]
    listed = ["xpk", "workload", "list", *where, "--filter-by-job", job.name]
    delete = Command(("xpk", "workload", "delete", *named, "--force"), "delete the workload")

    def read(code: int, output: str) -> tuple[State, str]:
        return read_list(code, output, job.name)

    return Plan(
        job.name,
        (*pack(job, "tpu"), text(job.files / "start.sh", start_script(options, job))),
        (Look(Command(tuple(listed), "the state of the workload"), read),),
        (Command(tuple(create), "add the job folder to the image, and submit the workload"),),
        (),
        (delete,),
        _bring(options, job),
        (),
        delete,
        job.run,
        restarts=options.restarts,
    )


def start_script(options: Xpk, job: Job) -> str:
    """The script of a container.

    It becomes the training process, which then gets the cluster's signals. The output goes to
    `train.log`; another process shows it, so that the cluster keeps it too.
    """
    mount = options.mount.rstrip("/")
    setup = f"{options.setup}\n" if options.setup else ""
    words = train_words(job, f"{mount}/{job.name}", f"{mount}/{CACHE}")
    return f"""\
#!/usr/bin/env bash
# One host of a slice; the cluster says which. Exit codes of 128 and more are those of a process
# that was stopped by a signal (143) or lost a peer (142): XPK restarts the workload, which resumes.
set -euo pipefail
cd "$(dirname "$0")"
mountpoint -q {shlex.quote(mount)} ||
  {{ echo "{mount} is not mounted: see xpk storage attach" >&2; exit 2; }}
python3 -m pip install --quiet --root-user-action ignore -r requirements.txt
{setup}{SHOWN}exec dynexit {shlex.join(words)} --start-timeout {START} \\
  >>train.log 2>&1
"""


def read_list(code: int, output: str, name: str) -> tuple[State, str]:
    """The state of a workload from the table of `xpk workload list`.

    Example:
      >>> table = "Jobset Name  Status    Status Message\\nfirst  Admitted  it is admitted"
      >>> read_list(0, table, "first"), read_list(0, table, "second")
      (('running', 'it is admitted'), ('none', ''))
    """
    if code:
        return "unseen", last_line(output)
    rows = [line for line in output.splitlines() if line.split()[:1] == [name]]
    if not rows:
        return "none", ""
    detail = re.split(r"\s{2,}", rows[0].strip())[-1]
    if "Finished" in rows[0]:
        message = rows[0].lower()
        return ("failed", detail) if "fail" in message else ("done", "")
    return ("running" if "Admitted" in rows[0] else "waiting"), detail


def _bring(options: Xpk, job: Job) -> tuple[Command, ...]:
    if options.bucket is None:
        return ()
    there = f"{options.bucket.rstrip('/')}/{job.name}"
    project = ["--project", options.project] if options.project else []
    words = ["gcloud", "storage", "rsync", "--recursive", there, str(job.run), *project]
    return (
        Command(("mkdir", "-p", str(job.run)), "make the folder here"),
        Command(tuple(words), "bring the run folder"),
    )
