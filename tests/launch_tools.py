"""Running composed scripts with a stand-in for training, and finding installed launchers."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest


def program(name, install):
    """The path of a launcher, which is installed in an environment of its own."""
    folders = os.environ.get("DYNEXIT_TEST_TOOLS", "")
    found = shutil.which(name, path=folders + os.pathsep + os.environ["PATH"])
    if found is None:
        pytest.skip(
            f"{install} in an environment of its own, and name its bin folder with "
            "DYNEXIT_TEST_TOOLS"
        )
    return Path(found)


def run_script(plan, name, folder, codes, environment, mounted=True, shown=0):
    """Runs a script of a plan in a folder; training ends with `codes`, start by start.

    `shown` are the seconds that the script leaves to the process that shows the log.

    Returns the exit code, the words of each start, what was printed, and the log.
    """
    text = next(f.content.decode() for f in plan.files if f.path.name == name)
    for place in (folder / "environment" / "bin", folder / "bin"):
        place.mkdir(parents=True)
    (folder / name).write_text(
        text.replace("sleep 10", ":").replace("sleep 1\n", f"sleep {shown}\n")
    )
    (folder / "requirements.txt").write_text("")
    training = (
        '#!/usr/bin/env bash\ntouch starts; n=$(wc -l <starts)\necho "$@" >>starts\n'
        f'codes=({" ".join(map(str, codes))})\necho "a line of training"\nexit "${{codes[$n]}}"\n'
    )
    programs = {
        folder / "environment" / "bin" / "dynexit": training,
        folder / "bin" / "dynexit": training,
        folder / "bin" / "python3": "#!/usr/bin/env bash\n",
        folder / "bin" / "mountpoint": f"#!/usr/bin/env bash\nexit {0 if mounted else 1}\n",
    }
    for path, source in programs.items():
        path.write_text(source)
        path.chmod(0o755)
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    words = ["bash", str(folder / name)]
    variables = {"PATH": path, "HOME": "/home/me", **environment}
    with (folder / "output").open("w") as output:  # a pipe stays open as long as `tail`
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env=variables, start_new_session=True
        )
        code = process.wait(timeout=30)
        time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    read = lambda file: file.read_text() if file.exists() else ""
    output, log = read(folder / "output"), read(folder / "train.log")
    return code, read(folder / "starts").splitlines(), output, log
