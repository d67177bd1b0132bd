"""`dynexit plan`: figures of a mesh, compared with the arrays and programs of that mesh."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import dynexit as dx
from dynexit.cli.main import main
from dynexit.core.settings import Mesh
from dynexit.runs.experiment_file import load
from dynexit.runs.planning import mesh as planned_mesh
from dynexit.runs.planning.depth import with_mean
from dynexit.runs.planning.mesh import compiled_sizes
from dynexit.runs.planning.training import Storage, training_plan

FILE = "experiments/digits_vit.py"
ROWS = 16


@pytest.fixture(scope="module")
def planned():
    """`planned(data, fsdp, model, most)`: values by name, of 16 rows on each device."""
    file, made = load(FILE), {}

    def values(*sizes, most=4):
        if (sizes, most) not in made:
            rows = ROWS * sizes[0] * sizes[1]
            settings = dataclasses.replace(
                file.smoke,
                mesh=Mesh(*sizes),
                training=dx.Training(steps=2, batch_size=rows, checkpoint_every=1),
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(planned_mesh, "MOST", most)
                lines = training_plan(file.build(settings), settings, Storage(1e6, 2))
            made[sizes, most] = {line.what: line.value for line in lines}
        return made[sizes, most]

    return values


def test_bytes_are_those_of_the_arrays_on_a_device(planned):
    from dynexit.training.parallel.mesh import make_mesh
    from dynexit.training.state import create_state

    file = load(FILE)
    settings = file.smoke
    state = create_state(
        file.build(settings), settings.training, 0, make_mesh(Mesh(2, 2, 1), jax.devices())
    )
    on_first = lambda tree: sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))
    found = planned(2, 2, 1)
    assert found["parameters"] == on_first(state.params)
    assert found["optimizer state"] == on_first(state.opt_state)
    whole = sum(a.nbytes for a in jax.tree.leaves((state.params, state.opt_state)))
    assert found["a checkpoint, of all devices"] == whole
    assert found["time to write a checkpoint"] == pytest.approx(whole / 1e6)
    batch = ROWS * (8 * 8 + 4)  # bytes of images and labels
    assert found["batch and state"] > found["parameters"] + found["optimizer state"] + batch


@pytest.mark.slow
def test_a_larger_mesh_is_extrapolated_from_a_smaller_one(planned):
    part, whole = planned(4, 1, 1, most=2), planned(4, 1, 1)
    for name in ("parameters", "batch and state", "rows of an update"):
        assert part[name] == whole[name]
    for name, within in (("activations and gradients", 0.02), ("FLOPs of an update", 1e-3)):
        assert part[name] == pytest.approx(whole[name], rel=within)
    ring = (3 / 4) / (1 / 2)  # of what a device sends to sum over four and over two
    assert whole["sent in an update"] == pytest.approx(part["sent in an update"] * ring)
    assert planned(256, 1, 1)["parameters"] == whole["parameters"]


def test_data_parallelism_sends_the_gradient_once(planned):
    found = planned(4, 1, 1)
    assert found["sent in an update"] == pytest.approx(2 * 3 / 4 * found["parameters"], rel=0.05)


def test_the_mesh_that_is_compiled():
    assert compiled_sizes((4, 8, 2)) == (4, 8, 2)
    assert compiled_sizes((4096, 1, 1)) == (64, 1, 1)
    assert compiled_sizes((256, 8, 2)) == (4, 8, 2)
    assert compiled_sizes((3, 128, 1)) == (2, 32, 1)


def test_the_command_prints_every_figure(tmp_path, capsys):
    words = ["plan", FILE, "--smoke", "--mesh.data", "2", "--mesh.model", "2"]
    out = tmp_path / "plan.json"
    assert main([*words, "--mean-depth", "1.5", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["mesh"] == [2, 1, 2]
    for line in content["lines"]:
        assert line["what"] in text and line["source"] in text
    values = {line["what"]: line["value"] for line in content["lines"]}
    assert values["mean exit"] == pytest.approx(1.5)
    assert 0 < values["occupancy of default tiles"] <= 1
    assert values["busiest device over the mean"] > values["the same, survivors redistributed once"]


@pytest.mark.parametrize(
    "words, named",
    [
        (["--mesh.data", "3"], "`batch_size` must be divisible by the 3"),
        (["--mean-depth", "9"], "`mean` must be between 1 and the 3 exits"),
        (["--mean-depth", "2", "--depths", "x"], "--mean-depth and --depths"),
        (["--depths", "nowhere"], "--depths nowhere"),
        (["--storage-gbs", "0"], "--storage-gbs must be above 0"),
    ],
)
def test_wrong_options_are_refused(words, named, capsys):
    assert main(["plan", FILE, "--smoke", *words]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("mean", [1.0, 1.26, 6.0, 11.9, 12.0])
def test_a_geometric_distribution_has_the_mean(mean):
    share = with_mean(mean, 12)
    assert share.sum() == pytest.approx(1) and (share >= 0).all()
    assert share @ np.arange(1, 13) == pytest.approx(mean)
