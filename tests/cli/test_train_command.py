"""What `dynexit train` does around the training: weights of another run, models that no device
holds, data that calibration would refuse.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.cli.options import parse
from dynexit.cli.plot import labels_of
from dynexit.core.settings import Mesh, Settings, Training
from dynexit.core.types import Experiment, Method, Model
from dynexit.data.source import from_arrays
from dynexit.runs.built import mesh_of, refuse_too_large, started_from
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.rows import write_rows
from dynexit.training.checkpointing.saver import Saver
from dynexit.training.parallel.mesh import make_mesh


def experiment(width=4):
    model = Model(
        lambda key: {"w": jax.random.normal(key, (width, 2))},
        lambda params, inputs: inputs,
        lambda params: None,
        1,
        ("block00",),
    )
    method = Method(None, lambda point: None, lambda *_: None, lambda output: output)
    splits = (from_arrays(s, np.zeros((4, 2)), [0, 1, 0, 1]) for s in ("train", "test"))
    train, test = splits
    return Experiment(model, method, train, train, test)


def test_training_starts_from_the_weights_of_a_run(tmp_path):
    with Saver(tmp_path, keep=1, seed=0) as saver:
        saver.save(7, {"params": {"w": jnp.full((4, 2), 3.0)}})
    again = started_from(tmp_path, experiment())
    np.testing.assert_array_equal(again.model.init(jax.random.key(0))["w"], 3.0)
    with pytest.raises(SettingsError, match=r"--init .* leaf params/w is float32\[4, 2\]"):
        started_from(tmp_path, experiment(width=5))
    with pytest.raises(SettingsError, match=r"--init .*no checkpoint"):
        started_from(tmp_path / "empty", experiment())


def test_a_model_that_no_device_holds_is_refused_with_its_bytes():
    refuse_too_large(experiment(), Training(), make_mesh())
    with pytest.raises(ValueError, match=r"need .* GB on each device .*, and a device has .* GB;"):
        refuse_too_large(experiment(10**12), Training(), make_mesh())


def test_fsdp_holds_what_one_device_does_not(monkeypatch):
    """The weights and two moments of 10^6 x 2 numbers are 24 MB; of four devices each has 10 MB."""
    monkeypatch.setattr("dynexit.runs.built.memory", lambda: 40e6)
    with pytest.raises(ValueError, match=r"0.0 GB on each device of the mesh data 4 x fsdp 1"):
        refuse_too_large(experiment(10**6), Training(), make_mesh())
    refuse_too_large(experiment(10**6), Training(), make_mesh(Mesh(fsdp=4)))


def test_the_mesh_is_a_setting_and_is_refused_by_number():
    words = ["--mesh.data", "4", "--mesh.fsdp", "2", "--mesh.model", "2"]
    _, settings = parse(words, "dynexit train", (), Settings())
    assert settings.mesh == Mesh(4, 2, 2)
    with pytest.raises(ValueError, match=r"`mesh` has data 4 .* = 16 devices, and there are 4"):
        mesh_of(settings)
    with pytest.raises(SettingsError, match=r"mesh.fsdp must be at least 1, got 0"):
        parse(["--mesh.fsdp", "0"], "dynexit train", (), Settings())


def test_labels_of_runs_are_as_long_as_they_must_be():
    assert labels_of(["a/run", "b/run/"]) == ["a/run", "b/run"]
    assert labels_of(["x/a/run", "y/a/run", "z/b/run"]) == ["x/a/run", "y/a/run", "z/b/run"]
    assert labels_of(["a/run"]) == ["run"]
    assert len(set(labels_of(["run", "run"]))) == 2


def test_every_row_is_reported_with_its_id(tmp_path):
    examples = {
        "inputs": np.zeros((3, 2)),
        "labels": np.array([1, 0, 1]),
        "id": np.array(["a", "b, c", "d"]),
        "more": np.zeros((3, 5)),
    }
    write_rows(tmp_path / "rows.csv", examples, np.array([1, 1, 1]), np.array([0, 2, 1]))
    assert (tmp_path / "rows.csv").read_text() == (
        'row,labels,id,answer,exit\n0,1,a,1,0\n1,0,"b, c",1,2\n2,1,d,1,1\n'
    )
