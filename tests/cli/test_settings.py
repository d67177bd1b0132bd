"""Settings from files and words: every fault is named at once, and JAX is not loaded for it."""

import dataclasses
import datetime
import enum
import json
import pathlib
import subprocess
import sys
from typing import Literal

import pytest

from dynexit.cli.options import Flag, parse
from dynexit.core.settings import Calibration, Training, at_least
from dynexit.runs.experiment_file import SettingsError, load
from dynexit.runs.recorded_settings import from_dict, to_dict


class Kind(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Net:
    """The network."""

    depth: int = 8
    """blocks"""
    width: int = 32
    """channels"""
    heads: int = 4
    """attention heads"""
    norm: Literal["pre", "post"] = "pre"
    """where"""
    bias: bool = True
    """whether"""
    sizes: tuple[int, ...] = (1, 2)
    """sizes"""

    def validate(self):
        clash = (
            [f"heads must divide width, got {self.heads} and {self.width}"]
            if self.width % self.heads
            else []
        )
        return at_least(self, 1, "depth") + clash


@dataclasses.dataclass(frozen=True)
class Settings:
    """All."""

    model: Net = Net()
    training: Training = Training()
    calibration: Calibration = Calibration()
    seed: int = 0
    """seed"""
    folder: pathlib.Path = pathlib.Path("data")
    """where"""
    kind: Kind = Kind.RED
    """which"""
    maybe: pathlib.Path | None = None
    """perhaps where"""


RUN = Flag("run", str | None, None, "run folder")


def read(*argv):
    return parse(argv, "dynexit train x.py", (RUN,), Settings())


def refusal(*argv):
    with pytest.raises(SettingsError) as caught:
        read(*argv)
    return str(caught.value)


def test_overrides_are_typed_and_dotted():
    flags, settings = read(
        "--model.depth",
        "6",
        "--training.learning-rate=0.1",
        "--run",
        "here",
        "--model.bias",
        "False",
    )
    assert flags == {"run": "here"}
    assert settings.model == Net(depth=6, bias=False) and settings.training.learning_rate == 0.1
    assert read("--calibration.accept-loss", "None", "--calibration.budget", "0.5")[
        1
    ].calibration == Calibration(None, 0.5)
    assert read("--model.sizes", "3", "4", "5")[1].model.sizes == (3, 4, 5)
    assert read() == ({"run": None}, Settings())


def test_all_faults_are_named_at_once():
    words = "--model.dept 6 --model.width abc --model.norm mid --training.steps 0 --sed 3 --model.depth -1".split()
    assert refusal(*words) == (
        "6 invalid settings:\n"
        "  --model.dept is not a setting; did you mean --model.depth?\n"
        "  --model.width takes int, got abc\n"
        "  --model.norm takes one of pre, post, got mid\n"
        "  --sed is not a setting; did you mean --seed?\n"
        "  model.depth must be at least 1, got -1\n"
        "  training.steps must be at least 1, got 0\n"
        "`dynexit train x.py --help` shows all settings."
    )


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("--depth 3", "--depth is not a setting; did you mean --model.depth?"),
        ("--model.depth", "--model.depth takes int, got nothing"),
        ("--model.depth 3 4", "--model.depth takes int, got 3 4"),
        ("--model.heads 5", "model.heads must divide width, got 5 and 32"),
        ("--calibration.budget much", "--calibration.budget takes float or None, got much"),
        ("--calibration.budget 2", "calibration.budget must lie above 0 and up to 1, got 2.0"),
        ("stray --seed 1", "unexpected argument 'stray'; options are written --name value"),
        ("--training.learning-rate 0", "training.learning_rate must be above 0, got 0.0"),
        ("--training.learning-rate inf", "training.learning_rate must be a finite number, got inf"),
        ("--training.weight-decay nan", "training.weight_decay must be a finite number, got nan"),
        ("--training.clip inf", "training.clip must be a finite number, got inf"),
        ("--seed -1", "seed must lie in 0..4294967295, got -1"),
        ("--seed 99999999999999999999", "seed must lie in 0..4294967295, got 99999999999999999999"),
        (
            "--training.steps 9999999999",
            "training.steps must be at most 2147483647, got 9999999999",
        ),
        (
            "--training.batch-size 99999999",
            "training.batch_size must be at most 1048576, got 99999999",
        ),
        ("--kind green", "--kind takes one of RED, BLUE, got green"),
    ],
)
def test_each_fault_has_its_sentence(words, sentence):
    assert f"1 invalid setting:\n  {sentence}\n" in refusal(*words.split())


def test_help_shows_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--help")
    shown = capsys.readouterr().out
    assert caught.value.code in (0, None)
    for words in (
        "--model.depth INT",
        "--seed INT",
        "--run",
        "--training.learning-rate FLOAT",
        "(default: 0.001)",
        "(default: 8)",
    ):
        assert words in shown


def test_settings_survive_json():
    read_words = read("--folder", "here", "--kind", "BLUE", "--maybe", "there")[1]
    for settings in (Settings(Net(depth=3, sizes=(7,)), seed=4), read_words):
        there = json.loads(json.dumps(to_dict(settings)))
        again = from_dict(Settings(), there, "f", print)
        assert again == settings and type(again.folder) is type(settings.folder)
    assert read_words.kind is Kind.BLUE and there["kind"] == "BLUE" and there["folder"] == "here"


@pytest.mark.parametrize(
    "hint, value",
    [
        (set[int], {1}),
        (datetime.date, datetime.date(2020, 1, 1)),
        (bytes, b"x"),
        (dict[int, str], {1: "a"}),
        (str | pathlib.Path, pathlib.Path("x")),
        (complex, 1j),
    ],
)
def test_types_that_json_does_not_hold_are_refused_by_name(hint, value):
    odd = dataclasses.field(default_factory=lambda: value)
    kind = dataclasses.make_dataclass("Odd", [("model", Net, Net()), ("odd", hint, odd)])
    with pytest.raises(SettingsError, match=r"odd must be of a type that settings\.json can hold"):
        to_dict(kind())


def test_values_that_json_holds_in_another_type_are_kept():
    kind = dataclasses.make_dataclass(
        "Fine",
        [
            ("rate", float, 1),
            ("either", int | float, 1.0),
            ("pair", tuple[pathlib.Path, Kind], (pathlib.Path("a"), Kind.RED)),
            ("some", list[str], dataclasses.field(default_factory=lambda: ["a"])),
            ("named", dict[str, int], dataclasses.field(default_factory=lambda: {"a": 1})),
        ],
    )
    assert from_dict(kind(), json.loads(json.dumps(to_dict(kind()))), "f", print) == kind()


def test_a_run_that_is_older_than_a_setting_opens_with_its_default():
    there, said = to_dict(Settings(Net(depth=3), seed=4)), []
    there["model"].pop("norm")
    assert from_dict(Settings(), there, "run/settings.json", said.append) == Settings(
        Net(depth=3), seed=4
    )
    assert said == ["run/settings.json is older than Net.norm: its default is taken, 'pre'"]


def test_settings_of_another_shape_are_refused():
    there = to_dict(Settings())
    there["model"].pop("depth")
    there["model"]["colour"] = 1
    with pytest.raises(
        SettingsError,
        match=r"run/settings.json does not fit the experiment's Net: missing \['depth'\], unknown \['colour'\]",
    ):
        from_dict(Settings(), there, "run/settings.json", print)


def test_a_file_that_is_no_experiment_is_refused(tmp_path):
    (tmp_path / "digits_vit.py").write_text("x = 1\n")
    with pytest.raises(SettingsError, match="defines no Settings, no SMOKE"):
        load(tmp_path / "digits_vit.py")
    with pytest.raises(
        SettingsError, match=r"no experiment file at .*digit_vit.py; the nearest is .*digits_vit.py"
    ):
        load(tmp_path / "digit_vit.py")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SettingsError, match="not a Python file"):
        load(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    "words",
    [["train", "{file}", "--model.dept", "3"], ["train", "{file}", "--help"], ["nonsense"], []],
)
def test_jax_is_not_loaded_for_a_refusal(words, request):
    file = request.config.rootpath / "experiments" / "digits_vit.py"
    code = (
        "import sys; from dynexit.cli.main import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as e: code = e.code or 0\n"
        "loaded = {'jax', 'flax', 'matplotlib', 'tensorflow_datasets', 'wandb'} & set(sys.modules)\n"
        "print('LOADED', sorted(loaded)); sys.exit(code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *(w.format(file=file) for w in words)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == (0 if "--help" in words else 2)
    assert "LOADED []" in ran.stdout and "Traceback" not in ran.stderr
    if "--model.dept" in words:
        assert "--model.dept is not a setting; did you mean --model.depth?" in ran.stderr
