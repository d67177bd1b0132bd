"""`launch local`: the plan, and processes with a stand-in for training."""

import dataclasses
import sys
from pathlib import Path

import pytest

from dynexit.runs.launch.local import Local, execute_local, plan_local, show_local

# Takes the options of `dynexit train`. The processes meet at the coordinator; at the first start
# they end as PLAN says, at the second they finish.
PROGRAM = """#!{python}
import os, pathlib, socket, sys, time
words = sys.argv[3:]
option = lambda name: words[words.index(name) + 1]
assert sys.argv[1:3] == ["-m", "dynexit.cli.main"] and words[0] == "train", sys.argv
assert pathlib.Path(words[1]).is_file() and "source" in os.environ["PYTHONPATH"]
run = pathlib.Path(option("--run"))
run.mkdir(parents=True, exist_ok=True)
host, port = option("--coordinator").split(":")
rank, count = int(option("--process")), int(option("--processes"))
if rank == 0:
    with socket.create_server((host, int(port))) as server:
        peers = [server.accept()[0] for _ in range(count - 1)]
        names = sorted(peer.recv(10).decode() for peer in peers)
        print("met", *names, flush=True)
else:
    while True:
        try:
            peer = socket.create_connection((host, int(port)))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    peer.send(str(rank).encode())
starts = run / f"starts{{rank}}"
starts.open("a").write(f"{{port}}\\n")
codes = {codes!r}[rank]
sys.exit(codes[min(len(starts.read_text().split()) - 1, len(codes) - 1)])
"""


def run(job, tmp_path, codes, **changes):
    """Exit code, lines and ports of each start."""
    program = tmp_path / "python"
    program.write_text(PROGRAM.format(python=sys.executable, codes=codes))
    program.chmod(0o755)
    options = dataclasses.replace(Local(processes=len(codes), grace=1), **changes)
    said = []
    code = execute_local(plan_local(options, job, str(program)), options, said.append)
    started = [(job.run / f"starts{k}").read_text().split() for k in range(len(codes))]
    return code, said, started


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"processes": 0}, "processes must lie in 1..256, got 0"),
        ({"devices": 0}, "devices must lie in 1..256, got 0"),
        ({"gpus": 65}, "gpus must lie in 1..64, got 65"),
        ({"gpus": 1, "devices": 1}, "devices and gpus: only one, got 1 and 1"),
        ({"start_timeout": 0}, "start_timeout must lie in 1..86400 seconds, got 0"),
        ({"grace": 0}, "grace must lie in 1..86400 seconds, got 0"),
    ],
)
def test_wrong_options_are_named(changes, sentence):
    assert Local(**changes).validate() == [sentence] and Local().validate() == []


def test_the_commands_of_one_and_of_several_processes(job):
    (one,) = plan_local(Local(), job, "python").processes("PORT")
    assert " ".join(one.words) == (
        "python -m dynexit.cli.main train runs/first.job/experiment/small_net.py --depth 6 "
        "--run runs/first --cache runs/compilation_cache"
    )
    several = plan_local(Local(processes=2, gpus=2, start_timeout=60), job, "python")
    words = [" ".join(command.words) for command in several.processes("7000")]
    for k, gpus in enumerate(("0,1", "2,3")):
        assert words[k].startswith(f"env CUDA_VISIBLE_DEVICES={gpus} python -m dynexit.cli.main ")
        assert words[k].endswith(
            f"--coordinator localhost:7000 --processes 2 --process {k} --start-timeout 60"
        )
    assert several.environment["PYTHONPATH"] == str(Path("runs/first.job/source").resolve())
    virtual = plan_local(Local(devices=4), job)
    assert virtual.environment["XLA_FLAGS"] == "--xla_force_host_platform_device_count=4"


def test_the_dry_run_shows_every_process_with_its_log(job):
    plan = plan_local(Local(processes=2, setup="dynexit data prepare digits"), job, "python")
    shown = show_local(plan)
    for k, command in enumerate(plan.processes("PORT")):
        assert f"{' '.join(command.words)} >>runs/first.job/logs/{k}.log 2>&1" in shown
    assert "sh -c 'dynexit data prepare digits'" in shown
    assert not Path("runs").exists()


def test_processes_meet_are_restarted_and_meet_again(job, tmp_path):
    code, said, started = run(job, tmp_path, [[143, 0], [142, 0], [143, 0]])
    assert code == 0
    assert said.count("0| met 1 2") == 2
    assert started[0] == started[1] == started[2] and len(started[0]) == 2
    assert (job.files / "logs" / "0.log").read_text() == "met 1 2\n" * 2
    assert said[-1].endswith("run folder: runs/first; exit code 0")


@pytest.mark.parametrize(
    "codes, restarts, code, starts",
    [
        ([[2], [142]], 3, 2, 1),
        ([[142, 1], [143, 0]], 3, 1, 2),
        ([[143], [142]], 1, 143, 2),
        ([[143], [0]], 0, 143, 1),
    ],
)
def test_the_exit_code_is_the_worst_of_the_last_start(job, tmp_path, codes, restarts, code, starts):
    found, _, started = run(job, tmp_path, codes, restarts=restarts)
    assert found == code and [len(ports) for ports in started] == [starts, starts]


def test_a_setup_that_fails_starts_nothing(job, tmp_path):
    options = Local(setup="echo no data; exit 3")
    said = []
    assert execute_local(plan_local(options, job, "none"), options, said.append) == 3
    assert said[0] == "no data" and "exit code 3" in said[-1] and not job.run.exists()


def test_the_job_folder_keeps_what_is_run(job, tmp_path):
    """A change of the experiment after the launch does not reach a restarted process."""
    run(job, tmp_path, [[0], [0]])
    packed = job.files / "experiment" / "small_net.py"
    assert packed.read_text() == job.experiment.read_text()
    assert (job.files / "experiment" / "sizes.py").is_file()
    assert (job.files / "source" / "dynexit" / "__init__.py").is_file()
