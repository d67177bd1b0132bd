"""A closed standard output or standard error does not stop a run."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynexit.training.checkpointing.checkpoints import restore_params
from dynexit.training.streams import SafeStream, safe_output

FIT = """
import dataclasses, sys, time
from pathlib import Path
import toy_experiment as toy
from dynexit.training.loop import fit
method = toy.build().method._replace(objective=lambda o, y, p: (
    toy.objective(o, y, p)[0], {"at_limit": p * 0 + 1}))  # a warning is written too
settings = dataclasses.replace(toy.SETTINGS, eval_every=3)
fit(toy.build()._replace(method=method), settings, Path(sys.argv[1]), 3)
"""


def run_with_closed_reader(program, *words, **env):
    """The exit code of a program whose standard output and error have no reader."""
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-c", program, *map(str, words)]
        done = subprocess.run(
            command, stdout=write, stderr=write, env=os.environ | env, timeout=120
        )
    finally:
        os.close(write)
    return done.returncode


def test_training_ends_although_the_log_pipe_is_closed(toy, tmp_path):
    code = run_with_closed_reader(FIT, tmp_path, PYTHONPATH=_path(toy))
    import jax

    params = jax.eval_shape(toy.init, jax.random.key(0))
    assert code == 0 and restore_params(tmp_path, params).step == toy.SETTINGS.steps


def test_training_ends_although_standard_error_was_closed_before_the_start(toy, tmp_path):
    command = f'exec {sys.executable} -c "$PROGRAM" {tmp_path} >&- 2>&-'
    env = os.environ | {"PROGRAM": FIT, "PYTHONPATH": _path(toy)}
    done = subprocess.run(["bash", "-c", command], env=env, timeout=120)
    assert done.returncode == 0 and (tmp_path / "checkpoints" / "00000012").is_dir()


def test_a_command_ends_although_its_output_is_closed():
    program = "import sys; from dynexit.cli.main import main; sys.exit(main(['--help']))"
    assert run_with_closed_reader(program) == 0


@pytest.mark.slow
def test_a_whole_run_goes_into_head(tmp_path):
    """The template through the command line, with only its first line of output read."""
    template = Path(__file__).parents[2] / "experiments" / "template.py"
    command = (
        f"{sys.executable} -m dynexit.cli.main train {template} --smoke --run {tmp_path}/run "
        "2>&1 | head -1; exit ${PIPESTATUS[0]}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=300)
    assert done.returncode == 0
    assert (tmp_path / "run" / "report.json").is_file()


class Failing(io.StringIO):
    def __init__(self, code):
        super().__init__()
        self.code, self.tried = code, 0

    def write(self, text):
        self.tried += 1
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_errors_of_writing_are_ignored(code):
    stream = Failing(code)
    safe = SafeStream(stream)
    assert [safe.write("ab"), safe.write("c")] == [2, 1] and stream.tried == 2
    safe.flush()


def test_what_is_written_arrives_and_other_errors_are_raised(capsys):
    before = sys.stdout, sys.stderr
    with safe_output():
        print("shown")
        print("warned", file=sys.stderr)
        with pytest.raises(UnicodeEncodeError):
            SafeStream(io.TextIOWrapper(io.BytesIO(), encoding="ascii")).write("\N{EURO SIGN}")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("shown\n", "warned\n")
    assert SafeStream(None).write("x") == 1 and not SafeStream(None).isatty()


def _path(toy):
    here = [str(Path(toy.__file__).parent), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, here))
