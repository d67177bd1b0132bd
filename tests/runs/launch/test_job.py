"""The job folder: what is packed, under which name, with which versions."""

from dynexit.runs.launch import job as module
from dynexit.runs.launch.execute import write
from dynexit.runs.launch.job import make_job, pack, requirements
from dynexit.runs.launch.plan import show_files


def test_the_name_is_that_of_the_file_and_of_what_is_run(experiment):
    plain, again = make_job(experiment), make_job(experiment)
    assert plain == again and plain.name.startswith("small-net-")
    assert make_job(experiment, ["--depth", "6"]).name != plain.name
    (experiment.parent / "sizes.py").write_text("DEPTH = 4\n")
    assert make_job(experiment).name != plain.name
    odd = experiment.with_name("2_Odd" + "x" * 40 + ".py")
    odd.write_text("")
    name = make_job(odd).name
    assert name.startswith("run-2-odd") and len(name) <= 41


def test_the_experiment_its_neighbours_and_the_source_of_a_checkout_are_packed(job):
    files = {str(f.path.relative_to(job.files)): f for f in pack(job, "tpu")}
    assert {"experiment/small_net.py", "experiment/sizes.py"} <= set(files)
    assert "experiment/other.py" not in files
    assert files["source/dynexit/runs/launch/job.py"].content == _bytes(module.__file__)
    assert "source/pyproject.toml" in files and "source/dynexit/py.typed" in files
    assert b'"--depth"' in files["job.json"].content
    shown = show_files(list(files.values()))
    assert (
        "experiment/sizes.py: a copy of" in shown and shown.count("\n# runs/first.job/source") == 1
    )


def test_written_files_are_those_of_the_plan(job):
    files = pack(job, "")
    write(files)
    assert all(_bytes(file.path) == file.content for file in files)
    before = (job.files / "job.json").stat().st_mtime_ns
    write(files)
    assert (job.files / "job.json").stat().st_mtime_ns == before


def test_versions_are_pinned(monkeypatch):
    lines = requirements("cuda12")
    assert lines[0] == "./source" and lines[1].startswith("jax[cuda12]==")
    assert any(line.startswith("flax==") for line in lines)
    assert not any(line.startswith(("python", "jaxlib", "dynexit==")) for line in lines)
    monkeypatch.setattr(module, "checkout", lambda: None)
    monkeypatch.setattr(module.importlib.metadata, "distribution", lambda name: _Distribution(None))
    assert requirements("")[0] == "dynexit==1"
    origin = '{"url": "https://example.org/d.git", "vcs_info": {"commit_id": "abc"}}'
    monkeypatch.setattr(
        module.importlib.metadata, "distribution", lambda name: _Distribution(origin)
    )
    assert requirements("")[0] == "dynexit @ git+https://example.org/d.git@abc"


class _Distribution:
    version = "1"

    def __init__(self, origin):
        self._origin = origin

    def read_text(self, name):
        return self._origin


def _bytes(path):
    with open(path, "rb") as file:
        return file.read()
