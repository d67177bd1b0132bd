"""An experiment with a neighbour, and stand-ins for the programs that launches call."""

import json
import sys
from pathlib import Path

import pytest

from dynexit.runs.launch.job import make_job

EXPERIMENT = '''"""Nothing."""
import dataclasses
import sizes

@dataclasses.dataclass(frozen=True)
class Settings:
    """All."""
    depth: int = sizes.DEPTH
    """blocks"""
    seed: int = 0
    """seed"""

SMOKE = Settings(depth=1)

def build(settings):
    raise SystemExit(1)
'''

TOOL = """#!{python}
import json, pathlib, sys
folder, name = pathlib.Path({folder!r}), {name!r}
words = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([name, *words]) + chr(10))
answers = json.loads((folder / f"{{name}}.json").read_text())
for k, (key, replies) in enumerate(answers.items()):
    if key in " ".join(words):
        count = folder / f"{{name}}.{{k}}"
        seen = int(count.read_text()) if count.exists() else 0
        count.write_text(str(seen + 1))
        code, text = replies[min(seen, len(replies) - 1)]
        (sys.stderr if code else sys.stdout).write(text)
        sys.exit(code)
"""


@pytest.fixture
def experiment(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "small_net.py").write_text(EXPERIMENT)
    (folder / "sizes.py").write_text("DEPTH = 3\n")
    (folder / "other.py").write_text("raise SystemExit\n")
    return folder / "small_net.py"


@pytest.fixture
def job(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_job(experiment, ["--depth", "6"], "first", "runs")


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Installs stand-ins: `tools("gcloud", {"describe": [[0, "ACTIVE"]]})` answers in turn, and the
    last answer for ever. `tools.calls()` are the words of all calls.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    # the only programs that a launch finds beside the stand-ins
    for name in ("mkdir", "tar", "gzip", "rm", "cat", "env", "bash", "sh"):
        (folder / name).symlink_to(
            next(p for p in (Path("/bin") / name, Path("/usr/bin") / name) if p.exists())
        )
    monkeypatch.setenv("PATH", str(folder))

    def install(name, answers):
        for used in folder.glob(f"{name}.*"):
            used.unlink()
        (folder / f"{name}.json").write_text(json.dumps(answers))
        (folder / name).write_text(
            TOOL.format(python=sys.executable, folder=str(folder), name=name)
        )
        (folder / name).chmod(0o755)

    def calls():
        path = folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    install.calls = calls
    return install
