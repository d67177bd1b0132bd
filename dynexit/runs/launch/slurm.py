"""`dynexit launch slurm`: a batch job of a SLURM cluster, submitted from its login node."""

import dataclasses
import shlex
import sys

from dynexit.runs.launch.job import CACHE, Job, checkout, pack, text, train_words
from dynexit.runs.launch.plan import SOURCE, Command, Look, Plan, State, last_line
from dynexit.runs.launch.target import TIME, Target, matches, one_line

INSTALLS = {
    "sbatch": "run the command on the login node of a SLURM cluster",
    "squeue": "run the command on the login node of a SLURM cluster",
}
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "STOPPED")


@dataclasses.dataclass(frozen=True)
class Slurm(Target):
    """Options of `dynexit launch slurm`.

    Example:
      >>> Slurm(time="4h").validate()
      ["time must be HOURS:MM:SS or DAYS-HOURS:MM:SS, got '4h'"]
    """

    nodes: int = 1
    """nodes of the job"""
    gpus: int = 0
    """GPUs of each node, with one process for each; 0 for one process on the CPUs of each node"""
    cpus: int | None = None
    """CPU cores of each process"""
    memory: str | None = None
    """of each node, such as 64G"""
    time: str = "24:00:00"
    """limit of one start; two minutes before it the run saves and the job is queued again"""
    partition: str | None = None
    """of the cluster"""
    account: str | None = None
    """that is charged"""
    options: str | None = None
    """further words of sbatch, such as "--constraint=a100 --exclusive" """
    python: str = sys.executable
    """interpreter on the nodes; by default this one, which the nodes must see at the same path"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = super().validate()
        for name, low, high in (("nodes", 1, 10_000), ("gpus", 0, 64), ("cpus", 1, 1024)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                found.append(f"{name} must lie in {low}..{high}, got {value}")
        found += matches(self, TIME, "HOURS:MM:SS or DAYS-HOURS:MM:SS", "time")
        try:
            shlex.split(self.options or "")
        except ValueError as error:
            found.append(f"options must be words of sbatch, got {self.options!r}: {error}")
        names = ("memory", "partition", "account", "options", "python")
        return found + one_line(self, *names)


def plan_slurm(options: Slurm, job: Job) -> Plan:
    """The plan of a launch on a SLURM cluster whose nodes share the folder of the runs."""
    files = job.files.resolve()
    script = job.files / "job.sbatch"
    code = job.files / "exit_code"
    submit = Command(("sbatch", str(script)), "submit the job")
    queue = ("squeue", "--noheader", "--name", job.name, "--format", "%T")
    clear = Command(("rm", "-f", str(code)), "forget the last exit code")
    return Plan(
        job.name,
        (
            *pack(job, "cuda12" if options.gpus else ""),
            text(script, batch_script(options, job)),
            text(job.files / "task.sh", task_script(options, job)),
            text(job.files / "logs" / "README", f"batch.log, and K.log of process K of {files}\n"),
        ),
        (
            Look(Command(queue, "the state in the queue"), read_queue),
            Look(Command(("cat", str(code)), "the exit code, once it has ended"), read_code),
        ),
        (clear, submit),
        (),
        (clear,),
        (),
        (),
        Command(("scancel", "--name", job.name), "cancel the job"),
        job.run,
        restarts=options.restarts,
    )


def batch_script(options: Slurm, job: Job) -> str:
    """The sbatch script: it runs the tasks, and queues the job again after a stop."""
    files = job.files.resolve()
    head = {
        "job-name": job.name,
        "nodes": options.nodes,
        "ntasks-per-node": options.gpus or 1,
        "gpus-per-node": options.gpus or None,
        "cpus-per-task": options.cpus,
        "mem": options.memory,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "chdir": files,
        "output": files / "logs" / "batch.log",
        "open-mode": "append",
        "signal": "TERM@120",
    }
    extra = [shlex.quote(word) for word in shlex.split(options.options or "")]
    lines = [f"#SBATCH --{name}={value}" for name, value in head.items() if value is not None]
    setup = f"{options.setup}\n" if options.setup else ""
    lines += ["#SBATCH --requeue", *(f"#SBATCH {w}" for w in extra)]
    return f"""\
#!/usr/bin/env bash
{chr(10).join(lines)}
# Trains on all nodes. Exit codes of 128 and more are those of a task that was stopped by a signal
# (143) or lost a peer (142): the job is queued again, and resumes. 1 and 2 are errors.
rm -rf codes exit_code
mkdir -p codes
{setup}srun --output=logs/%t.log --open-mode=append --kill-on-bad-exit=0 bash task.sh
stopped=$?
failed=$(cat codes/* | awk '$1 > 0 && $1 < 128' | sort -n | tail -n 1)
if [ -n "$failed" ]; then stopped=$failed; fi
if [ "$stopped" -ge 128 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {options.restarts} ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
echo "$stopped" >exit_code
exit "$stopped"
"""


def task_script(options: Slurm, job: Job) -> str:
    """The script of each process; it lives as long as the process, and keeps its exit code."""
    folder = job.folder.resolve()
    words = train_words(job, str(folder / job.name), str(folder / CACHE))
    pinned = ""
    if checkout() is not None:
        source = shlex.quote(str(job.files.resolve() / SOURCE))
        pinned = f'export PYTHONPATH={source}"${{PYTHONPATH:+:$PYTHONPATH}}"\n'
    return f"""\
#!/usr/bin/env bash
# One process of the job; SLURM's variables say which.
trap : TERM HUP USR1 INT
{pinned}{shlex.join([options.python, "-m", "dynexit.cli.main", *words])}
code=$?
echo "$code" >"codes/$SLURM_PROCID"
exit "$code"
"""


def read_queue(code: int, output: str) -> tuple[State, str] | None:
    """The state of a job in the queue; None if it is not there.

    Example:
      >>> read_queue(0, "PENDING"), read_queue(0, "RUNNING"), read_queue(0, "")
      (('waiting', 'pending'), ('running', ''), None)
    """
    if code:
        return "unseen", last_line(output)
    word = last_line(output)
    if not word:
        return None
    return ("waiting", word.lower()) if word in QUEUED else ("running", "")


def read_code(code: int, output: str) -> tuple[State, str] | None:
    """The state of a job that is not in the queue.

    Example:
      >>> read_code(0, "0"), read_code(0, "2"), read_code(1, "")
      (('done', ''), ('failed', 'exit code 2'), ('none', ''))
    """
    word = output.strip()
    if code or not word.isdecimal():
        return "none", ""
    return ("done", "") if word == "0" else ("failed", f"exit code {word}")
