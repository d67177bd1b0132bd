"""`dynexit launch tpu`: a TPU VM or a pod slice of Google Cloud, by gcloud's queued resources."""

import dataclasses
import re

from dynexit.runs.launch.host import folder_on_host, setup_script, train_script
from dynexit.runs.launch.job import Job, pack, text
from dynexit.runs.launch.plan import Command, Look, Plan, State, last_line
from dynexit.runs.launch.target import BUCKET, ZONE, Target, given, matches, nearest, one_line

INSTALLS = {"gcloud": "install the Google Cloud CLI, then `gcloud auth login`"}
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
"""The software version that JAX needs, by generation: Google's table of TPU software versions."""

SIZES = {
    "v2": (8, 32, 128, 256, 512),
    "v3": (8, 32, 64, 128, 256, 512, 1024, 2048),
    "v4": (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
    "v5litepod": (1, 4, 8, 16, 32, 64, 128, 256),
    "v5p": (8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 4096, 8192, 12288),
    "v6e": (1, 4, 8, 16, 32, 64, 128, 256),
}
"""Sizes that the message about a wrong accelerator suggests; others are left to gcloud."""

NFS = re.compile(r"[A-Za-z0-9.-]+:/([\w.-]+/?)*")
DURATION = re.compile(r"(\d+[dhms])+")
WAITING = ("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
GONE = ("SUSPENDING", "SUSPENDED", "DELETING")
MARK = "dynexit-state"
START = 900
"""Seconds that hosts wait for one another; one may be installing packages, or starting again."""


@dataclasses.dataclass(frozen=True)
class Tpu(Target):
    """Options of `dynexit launch tpu`.

    Example:
      >>> Tpu(accelerator="v5litepod-16", zone="us-west4-a", storage="gs://bucket/runs").validate()
      []
    """

    accelerator: str = ""
    """TPU type, such as v5litepod-16 or v4-32"""
    zone: str = ""
    """of the TPU, such as us-west4-a"""
    project: str | None = None
    """Google Cloud project; by default gcloud's"""
    storage: str = ""
    """where the hosts keep the runs: gs://BUCKET/FOLDER (mounted), or HOST:/SHARE of an NFS
    server such as Filestore
    """
    runtime: str | None = None
    """TPU software version; by default the one for JAX on this type"""
    spot: bool = False
    """cheaper, and may be preempted: then the TPU is requested again and the run resumes"""
    valid_until: str | None = None
    """how long the request may wait for a TPU, such as 6h; by default for ever"""
    service_account: str | None = None
    """of the hosts; it must be allowed to write to the bucket"""
    network: str | None = None
    """VPC network of the hosts; by default the project's default network"""
    keep: bool = False
    """keep the TPU after training; it costs until it is deleted"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = super().validate() + given(self, "accelerator", "zone", "storage")
        found += wrong_accelerator(self.accelerator)
        if self.zone:
            found += matches(self, ZONE, "a zone such as us-west4-a", "zone")
        if self.storage and not (BUCKET.fullmatch(self.storage) or NFS.fullmatch(self.storage)):
            found.append(f"storage must be gs://BUCKET/FOLDER or HOST:/SHARE, got {self.storage!r}")
        found += matches(self, DURATION, "a duration such as 6h or 1d12h", "valid_until")
        return found + one_line(self, "project", "runtime", "service_account", "network")


def wrong_accelerator(word: str, more: tuple[str, ...] = ()) -> list[str]:
    """A sentence about a word that is no TPU type, with the nearest; nothing for an empty one.

    Example:
      >>> wrong_accelerator("v5e-16")
      ["accelerator must be a TPU type such as v5litepod-16, got 'v5e-16'; the nearest is
      v5litepod-16"]
    """
    generation, _, size = word.partition("-")
    if not word or (generation in (*RUNTIMES, *more) and size.isdecimal()):
        return []
    usual = {"v5e": "v5litepod", "v5lite": "v5litepod", "v6": "v6e"}.get(generation, generation)
    known = [f"{name}-{n}" for name, sizes in SIZES.items() for n in sizes]
    return [
        f"accelerator must be a TPU type such as v5litepod-16, got {word!r}"
        + nearest(f"{usual}-{size}", known)
    ]


def plan_tpu(options: Tpu, job: Job) -> Plan:
    """The plan of a launch on a TPU VM or a pod slice."""
    name, packed = job.name, f"{job.files}.tar.gz"
    shared = folder_on_host(options.storage)
    where = ["--zone", options.zone]
    where += ["--project", options.project] if options.project else []
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    machine = ["gcloud", "compute", "tpus", "tpu-vm"]
    generation = options.accelerator.partition("-")[0]
    create = [*queued, "create", name, "--node-id", name, *where]
    create += ["--accelerator-type", options.accelerator]
    create += ["--runtime-version", options.runtime or RUNTIMES[generation]]
    for flag, value in (
        ("--valid-until-duration", options.valid_until),
        ("--service-account", options.service_account),
        ("--network", options.network),
    ):
        create += [flag, value] if value else []
    create += ["--spot"] if options.spot else []

    def on_all(command: str, does: str) -> Command:
        words = [*machine, "ssh", name, *where, "--worker", "all", "--command", command]
        return Command(tuple(words), does)

    folder = f"{name}.job"
    last = "tail -c 400 train.log 2>/dev/null | tr '\\r' '\\n' | tail -n 1"
    see = (
        f'cd {folder} 2>/dev/null || {{ echo "{MARK} ready"; exit 0; }}; '
        f'if [ -f exit_code ]; then echo "{MARK} $(cat exit_code)"; '
        f'elif [ -f pid ] && kill -0 "$(cat pid)" 2>/dev/null; then '
        f'echo "{MARK} running $({last})"; else echo "{MARK} ready"; fi'
    )
    start = (
        Command(
            ("tar", "-czf", packed, "--exclude", "logs", "-C", str(job.folder), folder),
            "pack the job folder",
        ),
        Command(
            (*machine, "scp", packed, f"{name}:", *where, "--worker", "all"),
            "copy it to all hosts",
        ),
        on_all(f"tar -xzf {folder}.tar.gz && bash {folder}/setup.sh", "prepare all hosts"),
        on_all(
            f"nohup setsid bash {folder}/train.sh >/dev/null 2>&1 </dev/null & sleep 2",
            "start training on all hosts",
        ),
    )
    delete = Command(
        (*queued, "delete", name, *where, "--force", "--quiet"), "delete the TPU and its request"
    )
    describe = Command(
        (*queued, "describe", name, *where, "--format", "value(state.state)"),
        "the state of the request",
    )
    return Plan(
        name,
        (
            *pack(job, "tpu"),
            text(job.files / "setup.sh", setup_script(options.storage, options.setup)),
            text(
                job.files / "train.sh",
                train_script(job, shared, options.restarts, f"--start-timeout {START}"),
            ),
        ),
        (Look(describe, read_request), Look(on_all(see, "the state of training"), read_hosts)),
        (Command(tuple(create), "request the TPU"),),
        start,
        (delete,),
        _bring(options, job, machine, where),
        () if options.keep else (delete,),
        delete,
        job.run,
        restarts=options.restarts,
    )


def read_request(code: int, output: str) -> tuple[State, str] | None:
    """The state of a queued resource; None if its hosts must be looked at.

    Example:
      >>> read_request(0, "WAITING_FOR_RESOURCES"), read_request(0, "ACTIVE")
      (('waiting', 'waiting_for_resources'), None)
    """
    word = output.strip().upper()
    if code:
        return ("none", "") if "NOT_FOUND" in word else ("unseen", last_line(output))
    if word in WAITING:
        return "waiting", word.lower()
    if word in GONE:
        return "lost", f"its request is {word.lower()}"
    if word == "FAILED":
        return "refused", "its request failed: quota, capacity, or --valid-until has passed"
    return None


def read_hosts(code: int, output: str) -> tuple[State, str] | None:
    """The state of training from the lines of all hosts.

    Example:
      >>> read_hosts(0, "dynexit-state 0\\ndynexit-state running step 3")
      ('running', 'step 3')
      >>> read_hosts(0, "dynexit-state running\\ndynexit-state 2")
      ('failed', 'exit code 2')
    """
    found = [line.split(MARK, 1)[1].strip() for line in output.splitlines() if MARK in line]
    codes = [int(word) for word in found if word.isdecimal()]
    if errors := [c for c in codes if 0 < c < 128]:
        return "failed", f"exit code {max(errors)}"
    if code or not found:
        return "unseen", f"the hosts do not answer: {last_line(output)}"
    if "ready" in found:
        return "ready", ""
    running = [word.removeprefix("running").strip() for word in found if word.startswith("running")]
    if running:
        return "running", max(running, key=len)
    return ("failed", f"exit code {max(codes)}") if max(codes) else ("done", "")


def _bring(options: Tpu, job: Job, machine: list[str], where: list[str]) -> tuple[Command, ...]:
    logs = job.files / "logs"
    make = Command(("mkdir", "-p", str(job.run), str(logs)), "make the folders here")
    log = Command(
        (*machine, "scp", f"{job.name}:{job.name}.job/train.log", str(logs), *where,
         "--worker", "0"),
        "bring the log of the first host",
    )  # fmt: skip
    if options.storage.startswith("gs://"):
        there = f"{options.storage.rstrip('/')}/{job.name}"
        project = ["--project", options.project] if options.project else []
        words = ["gcloud", "storage", "rsync", "--recursive", there, str(job.run), *project]
    else:
        there = f"{job.name}:storage/{job.name}/."
        words = [*machine, "scp", "--recurse", there, str(job.run), *where, "--worker", "0"]
    return make, Command(tuple(words), "bring the run folder"), log
