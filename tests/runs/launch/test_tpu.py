"""`launch tpu`: options, commands, scripts, and the way from a request to a finished run."""

import shutil
import subprocess

import pytest

from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.launch.execute import LaunchError, execute, refuse_missing, shell
from dynexit.runs.launch.plan import show
from dynexit.runs.launch.tpu import INSTALLS, Tpu, plan_tpu, read_hosts, read_request

OPTIONS = Tpu(accelerator="v5litepod-16", zone="us-west4-a", storage="gs://bucket/runs", spot=True)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"accelerator": "v5e-16"}, "accelerator must be a TPU type .*nearest is v5litepod-16"),
        ({"accelerator": "v4-9x"}, "accelerator must be a TPU type .*nearest is v4-"),
        ({"accelerator": ""}, "accelerator must be given"),
        ({"zone": ""}, "zone must be given"),
        ({"zone": "us-west4"}, "zone must be a zone such as us-west4-a, got 'us-west4'"),
        ({"storage": ""}, "storage must be given"),
        ({"storage": "/home/me"}, "storage must be gs://BUCKET/FOLDER or HOST:/SHARE"),
        ({"storage": "s3://bucket"}, "storage must be gs://BUCKET/FOLDER or HOST:/SHARE"),
        ({"valid_until": "soon"}, "valid_until must be a duration such as 6h or 1d12h"),
        ({"name": "My_Run"}, "name must be lower-case letters"),
        ({"name": "a" * 41}, "name must be lower-case letters"),
        ({"restarts": -1}, "restarts must lie in 0..1000, got -1"),
        ({"setup": "a\nb"}, "setup must be one line"),
        ({"folder": ""}, "folder must be given"),
    ],
)
def test_wrong_options_are_named(changes, sentence):
    import dataclasses
    import re

    (found,) = dataclasses.replace(OPTIONS, **changes).validate()
    assert re.search(sentence, found), found


def test_right_options_have_no_faults():
    assert OPTIONS.validate() == []
    assert Tpu(accelerator="v6e-8", zone="us-east5-b", storage="10.0.0.2:/runs").validate() == []


def test_the_commands(job):
    plan = plan_tpu(OPTIONS, job)
    (create,) = plan.request
    assert " ".join(create.words) == (
        "gcloud compute tpus queued-resources create first --node-id first --zone us-west4-a "
        "--accelerator-type v5litepod-16 --runtime-version v2-alpha-tpuv5-lite --spot"
    )
    pack, copy, prepare, start = (" ".join(c.words) for c in plan.start)
    assert pack == "tar -czf runs/first.job.tar.gz --exclude logs -C runs first.job"
    assert copy == (
        "gcloud compute tpus tpu-vm scp runs/first.job.tar.gz first: --zone us-west4-a --worker all"
    )
    assert "ssh first --zone us-west4-a --worker all --command tar -xzf first.job.tar.gz" in prepare
    assert "nohup setsid bash first.job/train.sh" in start
    _, bring, _ = (" ".join(c.words) for c in plan.bring)
    assert bring == "gcloud storage rsync --recursive gs://bucket/runs/first runs/first"
    assert plan.end == plan.clear == (plan.stop,)
    text = show(plan)
    for command in (*plan.request, *plan.start, *plan.bring, *plan.end):
        assert command.does in text
    for file in plan.files:
        assert file.source is not None or file.content.decode() in text


def test_further_options_reach_their_commands(job):
    options = Tpu(
        accelerator="v4-8", zone="us-central2-b", project="p", storage="10.0.0.2:/share",
        valid_until="6h", service_account="me@p", network="n", keep=True, runtime="other",
    )  # fmt: skip
    plan = plan_tpu(options, job)
    create = " ".join(plan.request[0].words)
    for words in ("--project p", "--valid-until-duration 6h", "--service-account me@p",
                  "--network n", "--runtime-version other"):  # fmt: skip
        assert words in create
    assert "--spot" not in create and plan.end == ()
    assert "scp --recurse first:storage/first/. runs/first" in " ".join(plan.bring[1].words)
    assert "mount -t nfs 10.0.0.2:/share" in _script(plan, "setup.sh")


def test_the_scripts(job, tmp_path):
    import dataclasses

    plan = plan_tpu(dataclasses.replace(OPTIONS, setup="dynexit data prepare digits"), job)
    train, setup = _script(plan, "train.sh"), _script(plan, "setup.sh")
    assert "dynexit train experiment/small_net.py --depth 6 " in train
    assert '--run "$HOME/storage/runs/first"' in train
    assert '--cache "$HOME/storage/runs/compilation_cache"' in train
    assert ">>train.log 2>&1" in train and "|" not in train.replace("||", "")
    assert "gcsfuse" in setup and setup.rstrip().endswith("dynexit data prepare digits")
    for name in ("train.sh", "setup.sh"):
        checked = subprocess.run(["bash", "-n"], input=_script(plan, name), text=True)
        assert checked.returncode == 0


@pytest.mark.parametrize(
    "codes, starts, left",
    [("0", 1, "0"), ("143 142 0", 3, "0"), ("143 1", 2, "1"), ("2", 1, "2"),
     ("143 143 143 143", 3, "143")],
)  # fmt: skip
def test_a_host_restarts_what_was_stopped(job, tmp_path, codes, starts, left):
    import dataclasses

    plan = plan_tpu(dataclasses.replace(OPTIONS, restarts=2), job)
    folder = tmp_path / "host"
    (folder / "environment" / "bin").mkdir(parents=True)
    (folder / "train.sh").write_text(_script(plan, "train.sh").replace("sleep 10", ":"))
    program = folder / "environment" / "bin" / "dynexit"
    program.write_text(
        '#!/usr/bin/env bash\necho "$@"\ntouch starts; n=$(wc -l <starts)\n'
        f'echo >>starts\ncodes=({codes})\nexit "${{codes[$n]}}"\n'
    )
    program.chmod(0o755)
    subprocess.run(["bash", str(folder / "train.sh")], check=True, env={"HOME": "/home/me",
                   "PATH": "/usr/bin:/bin"})  # fmt: skip
    assert (folder / "exit_code").read_text().strip() == left
    assert (folder / "starts").read_text() == "\n" * starts
    log = (folder / "train.log").read_text()
    assert log.count("--run /home/me/storage/runs/first --cache") == starts


def test_states_are_read():
    assert read_request(1, "ERROR: NOT_FOUND: first") == ("none", "")
    assert read_request(1, "ERROR: no network")[0] == "unseen"
    assert read_request(0, "SUSPENDED\n")[0] == "lost"
    assert read_request(0, "FAILED\n")[0] == "refused"
    assert read_request(0, "PROVISIONING\n")[0] == "waiting"
    two = "SSH: worker 0\ndynexit-state {}\nSSH: worker 1\ndynexit-state {}\n"
    assert read_hosts(0, two.format("running", "running step 3")) == ("running", "step 3")
    assert read_hosts(0, two.format("ready", "running"))[0] == "ready"
    assert read_hosts(0, two.format("0", "0"))[0] == "done"
    assert read_hosts(0, two.format("0", "143"))[0] == "failed"
    assert read_hosts(255, "ssh: connect timed out")[0] == "unseen"


def answers(requests, hosts, **others):
    return {"describe": requests, "dynexit-state": hosts, **others}


def hosts(*states):
    return [[0, f"dynexit-state {state}\ndynexit-state {state}\n"] for state in states]


def launched(job, tools, told, detach=False, restarts=10):
    """The exit code, the verbs of the calls after the looks, the lines, the seconds slept."""
    import dataclasses

    tools("gcloud", told)
    plan = plan_tpu(dataclasses.replace(OPTIONS, restarts=restarts), job)
    said, slept = [], []
    using = shell()._replace(sleep=slept.append)
    code = execute(plan, said.append, detach, using, INSTALLS)
    verbs = [next(w for w in c if w in ("create", "scp", "ssh", "rsync", "delete", "describe"))
             for c in tools.calls()]  # fmt: skip
    looks = [not any("dynexit-state" in word for word in c) for c in tools.calls()]
    return code, [v for v, k in zip(verbs, looks, strict=True) if v != "describe" and k], said


def test_from_a_request_to_the_run_folder(job, tools):
    requests = [[1, "NOT_FOUND"], [0, "WAITING_FOR_RESOURCES"], [0, "ACTIVE"]]
    code, verbs, said = launched(job, tools, answers(requests, hosts("ready", "running", "0")))
    assert code == 0
    assert verbs == ["create", "scp", "ssh", "ssh", "rsync", "scp", "delete"]
    assert (job.folder / "first.job.tar.gz").is_file() and (job.files / "train.sh").is_file()
    assert said[-1] == "first finished; its run folder is runs/first"


def test_after_a_preemption_the_request_is_made_again(job, tools):
    requests = [[1, "NOT_FOUND"], [0, "ACTIVE"], [0, "ACTIVE"], [0, "SUSPENDED"], [0, "ACTIVE"]]
    told = answers(requests, hosts("ready", "running", "ready", "running", "0"))
    code, verbs, said = launched(job, tools, told)
    begin = ["scp", "ssh", "ssh"]
    end = ["rsync", "scp", "delete"]
    assert (code, verbs) == (0, ["create", *begin, "delete", "create", *begin, *end])
    assert any("was preempted" in line for line in said)


def test_preemptions_are_bounded(job, tools):
    requests = [[1, "NOT_FOUND"], [0, "SUSPENDED"]]
    with pytest.raises(LaunchError, match="preempted 3 times; --restarts allows more"):
        launched(job, tools, answers(requests, hosts("ready")), restarts=2)


def test_a_running_job_is_followed_and_a_failed_one_is_started_again(job, tools):
    active = [[0, "ACTIVE"]]
    code, verbs, _ = launched(job, tools, answers(active, hosts("running", "0")))
    assert (code, verbs) == (0, ["rsync", "scp", "delete"])


def test_a_failed_job_brings_its_run_folder_back_with_code_1(job, tools):
    code, verbs, said = launched(job, tools, answers([[0, "ACTIVE"]], hosts("running", "2")))
    assert (code, verbs) == (1, ["rsync", "scp", "delete"])
    assert "failed (exit code 2)" in said[-1]


def test_a_job_that_failed_earlier_is_started_again(job, tools):
    code, verbs, _ = launched(job, tools, answers([[0, "ACTIVE"]], hosts("1", "running", "0")))
    assert (code, verbs) == (0, ["scp", "ssh", "ssh", "rsync", "scp", "delete"])


def test_detach_returns_once_training_has_started(job, tools):
    told = answers([[1, "NOT_FOUND"], [0, "ACTIVE"]], hosts("ready"))
    code, verbs, said = launched(job, tools, told, detach=True)
    assert (code, verbs) == (0, ["create", "scp", "ssh", "ssh"]) and "--detach" in said[-1]


def test_a_refused_request_and_a_failed_command_are_named(job, tools):
    told = answers([[1, "NOT_FOUND"], [0, "FAILED"]], [])
    with pytest.raises(LaunchError, match="its request failed: quota"):
        launched(job, tools, told)
    with pytest.raises(
        LaunchError, match=r"queued-resources create first.* ended with exit code 3"
    ):
        launched(job, tools, {"describe": [[1, "NOT_FOUND"]], "create": [[3, "quota"]]})
    with pytest.raises(LaunchError, match=r"cannot be seen .please log in., try `gcloud"):
        launched(job, tools, {"describe": [[1, "please log in"]]})


def test_one_look_that_fails_is_no_preemption(job, tools):
    requests = [[0, "ACTIVE"], [1, "no network"], [1, "no network"], [0, "ACTIVE"]]
    code, verbs, _ = launched(job, tools, answers(requests, hosts("running", "0")))
    assert (code, verbs) == (0, ["rsync", "scp", "delete"])
    with pytest.raises(LaunchError, match=r"not seen in 5 looks .no network."):
        launched(job, tools, answers([[0, "ACTIVE"], [1, "no network"]], hosts("running")))


def test_a_missing_program_is_named(job, tools):
    plan = plan_tpu(OPTIONS, job)
    with pytest.raises(SettingsError, match=r"`gcloud` is not on the PATH; install the Google"):
        refuse_missing(plan.request, INSTALLS)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="install the Google Cloud CLI")
def test_gcloud_knows_every_option(job):
    """`--help` of each command names the options that the plan uses; nothing is requested."""
    options = Tpu(
        accelerator="v4-8", zone="us-central2-b", project="p", storage="gs://bucket",
        valid_until="6h", service_account="me@p", network="n", spot=True,
    )  # fmt: skip
    plan = plan_tpu(options, job)
    looks = [look.command for look in plan.looks]
    wanted = {}
    for command in (*plan.request, *looks, *plan.start, *plan.bring, *plan.end):
        words = list(command.words)
        if words[0] == "gcloud":
            count = 3 if words[1] == "storage" else 5
            flags = {word for word in words if word.startswith("--")}
            wanted.setdefault(tuple(words[:count]), set()).update(flags)
    assert len(wanted) == 6
    for words, flags in wanted.items():
        shown = subprocess.run([*words, "--help"], capture_output=True, text=True, check=True)
        missing = {flag for flag in flags - {"--project", "--format"} if flag not in shown.stdout}
        assert missing == set(), words


def _script(plan, name):
    return next(f.content.decode() for f in plan.files if f.path.name == name)
