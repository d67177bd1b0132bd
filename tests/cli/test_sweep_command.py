"""`dynexit sweep`: the grid, its refusals, its runs as processes, and the summary."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dynexit.cli.main import main
from dynexit.runs.experiment_file import load
from dynexit.runs.sweeps import children
from dynexit.runs.sweeps.grid import argv_of, points_of
from dynexit.runs.sweeps.record import groups_of

EXPERIMENT = '''"""Nothing."""
import dataclasses
from typing import Literal

@dataclasses.dataclass(frozen=True)
class Model:
    """A model."""
    depth: int = 3
    """blocks"""
    heads: int = 1
    """heads"""
    widths: tuple[int, ...] = (8, 8)
    """channels"""
    norm: Literal["rms", "layer"] = "rms"
    """norm"""

    def validate(self):
        return [] if self.depth % self.heads == 0 else [f"depth {self.depth} has {self.heads} heads"]

@dataclasses.dataclass(frozen=True)
class Settings:
    """All."""
    model: Model = Model()
    """model"""
    seed: int = 0
    """seed"""

SMOKE = Settings(Model(depth=1))

def build(settings):
    raise RuntimeError("not built here")
'''

# what takes the place of `dynexit train`: a report, or the failure that the test wants
CHILD = """
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
launched = words[0] == "launch"
run = Path(option("--folder"), option("--name")) if launched else Path(option("--run"))
run.mkdir(parents=True, exist_ok=True)
with (run / "starts.txt").open("a") as file:
    file.write(" ".join(words) + "\\n")
seed = int(words[words.index("--seed") + 1])
depth = int(words[words.index("--model.depth") + 1])
if (run.parent / f"fail{seed}").exists():
    print("something\\nValueError: out of luck", flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if seed == 1 else sys.exit(3)
if (run.parent / "wait").exists():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (run / "waits").touch()
    time.sleep(60)
figures = dict(accuracy_full=0.9, accuracy_dynamic=0.8 + 0.1 * seed, mean_depth=depth / 2)
figures |= dict(flops_full=1e6 * depth, flops_ratio=0.5, seconds_full=1.0, seconds_dynamic=0.5)
figures |= dict(speedup=2.0, efficiency=1.0, group=os.environ["WANDB_RUN_GROUP"])
(run / "report.json").write_text(json.dumps(figures))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    (tmp_path / "first.py").write_text(EXPERIMENT)
    real = subprocess.Popen

    def popen(command, **options):
        if command[:3] == [sys.executable, "-m", "dynexit.cli.main"]:
            command = [sys.executable, "-c", CHILD, *command[3:]]
        return real(command, **options)

    monkeypatch.setattr(children.subprocess, "Popen", popen)
    return "first.py"


GRID = ["--model.depth", "2", "4", "--seed", "0", "1", "--sweep", "all"]


def test_every_point_runs_once_and_is_summarised(file, capsys):
    assert main(["sweep", file, *GRID, "--model.norm", "layer", "--parallel", "2"]) == 0
    runs = sorted(path.name for path in Path("all").iterdir() if path.is_dir())
    assert runs == ["depth=2,seed=0", "depth=2,seed=1", "depth=4,seed=0", "depth=4,seed=1"]
    starts = Path("all/depth=4,seed=1/starts.txt").read_text()
    run = Path("all/depth=4,seed=1")
    words = "--model.norm layer --model.depth 4 --seed 1 --run"
    assert starts == f"train {file} {words} {run}\n"
    content = json.loads(Path("all/sweep.json").read_text())
    assert content["schema_version"] == 1 and content["axes"] == ["model.depth", "seed"]
    first, second = content["groups"]
    assert first["values"] == {"model.depth": 2} and second["runs"] == 2
    assert first["accuracy_dynamic"]["mean"] == pytest.approx(0.85)
    assert first["accuracy_dynamic"]["sd"] == pytest.approx(0.1 / 2**0.5)
    assert second["mean_depth"] == {"mean": 2.0, "sd": 0.0}
    header, *rows = csv.reader(Path("all/sweep.csv").read_text().splitlines())
    assert header[:4] == ["model.depth", "runs", "accuracy_full_mean", "accuracy_full_sd"]
    assert [row[:3] for row in rows] == [["2", "2", "0.9"], ["4", "2", "0.9"]]
    assert "| 2 | 2 | 90.00 ± 0.00 | 85.00 ± 7.07 | 1.00 ± 0.00" in Path("all/sweep.md").read_text()
    assert Path("all/sweep.png").stat().st_size > 1000
    assert json.loads((run / "report.json").read_text())["group"] == "all"
    assert "85.00 ± 7.07" in capsys.readouterr().out


def test_runs_may_be_launched(file, capsys):
    words = ["--launch", "slurm --nodes 2 --gpus 1 --partition gpu", "--model.norm", "layer"]
    assert main(["sweep", file, *GRID, *words]) == 0
    content = json.loads(Path("all/sweep.json").read_text())
    assert [point["state"] for point in content["points"]] == ["finished"] * 4
    start = Path("all/depth=4,seed=1/starts.txt").read_text().split()
    assert start[:3] == ["launch", "slurm", file] and start[3] == "--name"
    assert start[5:9] == ["--folder", "all/jobs", "--nodes", "2"]
    assert start[-4:] == ["--model.depth", "4", "--seed", "1"]
    names = {Path(path).read_text().split()[4] for path in Path("all").glob("*/starts.txt")}
    assert len(names) == 4 and not list(Path("all/jobs").iterdir())
    capsys.readouterr()
    for launch, said in (("slrum", "slurm"), ("slurm --nodes 0", "nodes")):
        assert main(["sweep", file, *GRID[:-1], "other", "--launch", launch]) == 2
        assert said in capsys.readouterr().err and not Path("other").exists()


def test_options_of_one_run_of_several_processes_are_refused(file, capsys):
    assert main(["sweep", file, *GRID, "--coordinator", "localhost:1234"]) == 2
    assert "--coordinator" in capsys.readouterr().err and not Path("all").exists()


def test_a_failure_is_listed_and_the_same_command_continues(file, capsys):
    Path("all").mkdir()
    Path("all/fail1").touch()
    assert main(["sweep", file, *GRID]) == 1
    content = json.loads(Path("all/sweep.json").read_text())
    assert [p["state"] for p in content["points"]] == ["finished", "failed"] * 2
    assert content["points"][1]["why"] == "ended by signal 9"
    assert [group["runs"] for group in content["groups"]] == [1, 1]
    assert content["groups"][0]["accuracy_full"]["sd"] is None
    assert "depth=2,seed=1 failed: ended by signal 9" in capsys.readouterr().out
    Path("all/fail1").unlink()
    assert main(["sweep", file, *GRID]) == 0
    assert main(["sweep", file, *GRID[3:6], *GRID[:3], *GRID[6:]]) == 0  # in another order
    counts = [len(p.read_text().splitlines()) for p in sorted(Path("all").glob("*/starts.txt"))]
    assert counts == [1, 2, 1, 2]  # finished runs are kept
    states = [p["state"] for p in json.loads(Path("all/sweep.json").read_text())["points"]]
    assert states == ["finished"] * 4


def test_the_last_line_says_why_a_run_failed(file):
    Path("all").mkdir()
    Path("all/fail0").touch()
    assert main(["sweep", file, *GRID]) == 1
    point = json.loads(Path("all/sweep.json").read_text())["points"][0]
    assert point["state"] == "failed" and point["why"] == "ValueError: out of luck"
    assert "something" in Path("all/depth=2,seed=0.log").read_text()


def test_more_seeds_are_added_and_other_settings_are_refused(file, capsys):
    assert main(["sweep", file, *GRID]) == 0
    assert (
        main(["sweep", file, "--model.depth", "2", "4", "--seed", "1", "5", "--sweep", "all"]) == 0
    )
    content = json.loads(Path("all/sweep.json").read_text())
    assert [group["runs"] for group in content["groups"]] == [3, 3]
    capsys.readouterr()
    assert main(["sweep", file, *GRID, "--model.norm", "layer"]) == 2
    assert "settings.model.norm is 'rms' there, 'layer' here" in capsys.readouterr().err
    assert main(["sweep", file, "--seed", "0", "1", "--sweep", "all"]) == 2
    assert "holds another sweep" in capsys.readouterr().err


def test_a_summary_reads_the_reports_again(file, capsys):
    assert main(["sweep", file, *GRID]) == 0
    report = Path("all/depth=2,seed=0/report.json")
    report.write_text(json.dumps({**json.loads(report.read_text()), "accuracy_dynamic": 0.6}))
    Path("all/depth=4,seed=0/report.json").write_text("{")
    assert main(["sweep", "all", "--summary"]) == 0
    assert "75.00 ± 21.21" in capsys.readouterr().out
    states = [p["state"] for p in json.loads(Path("all/sweep.json").read_text())["points"]]
    assert states == ["finished", "finished", "pending", "finished"]
    assert main(["sweep", "nowhere", "--summary"]) == 2
    assert "nowhere is not the folder of a sweep" in capsys.readouterr().err


def test_sigterm_stops_all_runs_and_the_same_command_continues(file):
    Path("all").mkdir()
    Path("all/wait").touch()
    program = (
        "import sys, subprocess, threading, os, signal, time\n"
        "from pathlib import Path\n"
        "from dynexit.cli.main import main\n"
        "from dynexit.runs.sweeps import children\n"
        "real = subprocess.Popen\n"
        f"child = {CHILD!r}\n"
        "children.subprocess.Popen = lambda command, **o: real([sys.executable, '-c', child, "
        "*command[3:]], **o)\n"
        "def kill():\n"
        "    while len(list(Path('all').glob('*/waits'))) < 2: time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["sweep", file, *GRID, "--parallel", "2"]
    ended = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 143, ended.stderr
    assert "the same command continues it" in ended.stderr
    points = json.loads(Path("all/sweep.json").read_text())["points"]
    assert [p["state"] for p in points] == ["stopped", "stopped", "pending", "pending"]
    Path("all/wait").unlink()
    assert main(words) == 0


@pytest.mark.parametrize(
    "words, sentences",
    [
        (
            ["--model.depth", "2", "three", "--seed", "-1", "0", "--model.deth", "4"],
            ["--model.depth takes int, got three", "--model.deth is not a setting"],
        ),
        (
            ["--model.depth", "2", "3", "--model.heads", "1", "2", "--seed", "0", "-1"],
            [
                "model.depth 3 has 2 heads (2 of 8 runs: depth=3,heads=2,seed=0, ",
                "seed must lie in 0..4294967295, got -1 (4 of 8 runs",
            ],
        ),
        (["--seed", "0"], ["a sweep needs a setting with several values"]),
        (["--seed", "0", "0"], ["--seed has a value twice"]),
        (["--seed", "0", "1", "--seed", "2"], ["--seed is given twice"]),
        (["--seed", "0", "1", "--run", "x"], ["--run is not a setting"]),
        (["--seed", "0", "1", "--parallel", "0"], ["--parallel must be at least 1"]),
    ],
)
def test_an_invalid_grid_is_refused_before_anything_starts(file, capsys, words, sentences):
    assert main(["sweep", file, *words, "--sweep", "all"]) == 2
    message = capsys.readouterr().err
    for sentence in sentences:
        assert sentence in message
    assert not Path("all").exists()


def test_values_are_part_of_the_names(file):
    from dynexit.cli.sweep import _axis, separated

    experiment = load(file)
    types = {"model.widths": tuple[int, ...], "seed": int}
    swept, shared = separated(
        ["--model.widths", "16 32", "8", "--seed", "0", "1", "--smoke"], types
    )
    assert shared == ["--smoke"]
    axes = [_axis(name, values, "x", experiment.settings)[0] for name, values in swept.items()]
    points = points_of(axes, experiment.settings)
    assert [p.name for p in points][1:3] == ["widths=16+32,seed=1", "widths=8,seed=0"]
    assert points[0].settings.model.widths == (16, 32)
    words = argv_of(Path(file), shared, points[0], Path("all"))
    assert " ".join(words[2:-1]) == "--smoke --model.widths 16 32 --seed 0 --run"
    assert words[-1] == str(Path("all/widths=16+32,seed=0"))


def test_one_tuple_is_not_a_grid(file, capsys):
    assert main(["sweep", file, "--model.widths", "16", "32", "--sweep", "all"]) == 2
    assert "a sweep needs a setting with several values" in capsys.readouterr().err


def test_without_a_folder_the_same_command_finds_its_sweep_again(file, capsys):
    words = ["sweep", file, "--model.depth", "2", "--seed", "0"]
    assert main([*words, "1"]) == 0
    assert main([*words, "1", "2"]) == 0
    assert len(list(Path("runs").iterdir())) == 1
    assert main([*words, "1", "--model.norm", "layer"]) == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_runs_that_differ_in_the_seed_alone_make_a_group():
    names = ("accuracy_full", "accuracy_dynamic", "mean_depth", "flops_full", "flops_ratio")
    names += ("seconds_full", "seconds_dynamic", "speedup", "efficiency")
    point = lambda seed, value, state="finished": {
        "values": {"seed": seed, "model.depth": 4},
        "state": state,
        **dict.fromkeys(names, value),
    }
    (group,) = groups_of(
        [point(0, 1.0), point(1, 3.0), point(2, 9.0, "failed")], ["seed", "model.depth"]
    )
    assert group["runs"] == 2 and group["speedup"] == {"mean": 2.0, "sd": pytest.approx(2**0.5)}
    (group,) = groups_of([point(0, None)], ["seed", "model.depth"])
    assert group["speedup"] == {"mean": None, "sd": None}


@pytest.mark.slow
def test_a_real_sweep_keeps_finished_runs_and_resumes_others(tmp_path, monkeypatch):
    """Processes of `dynexit train`, as users have them."""
    monkeypatch.chdir(tmp_path)
    experiment = Path(__file__).parents[2] / "experiments" / "digits_vit.py"
    words = ["sweep", str(experiment), "--smoke", "--seed", "0", "1", "--sweep", "all"]
    words += ["--model.depth", "2", "--evaluation.repeats", "1"]
    assert main(words) == 0
    content = json.loads(Path("all/sweep.json").read_text())
    (group,) = content["groups"]
    reports = [json.loads(p.read_text()) for p in sorted(Path("all").glob("*/report.json"))]
    mean = sum(report["accuracy_full"] for report in reports) / 2
    assert group["runs"] == 2 and group["accuracy_full"]["mean"] == pytest.approx(mean)
    before = Path("all/seed=0/report.json").stat().st_mtime_ns
    Path("all/seed=1/report.json").unlink()  # as if it had been killed before its report
    assert main(words) == 0
    assert Path("all/seed=0/report.json").stat().st_mtime_ns == before
    assert "has finished before" not in Path("all/seed=0.log").read_text()
    again = json.loads(Path("all/seed=1/report.json").read_text())
    assert again["accuracy_full"] == reports[1]["accuracy_full"]
