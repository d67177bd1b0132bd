"""What calibration or the report would refuse is refused before the first update, and what only
the host needs stays there.
"""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.core.folder_lock import FolderInUse, in_use
from dynexit.data.source import from_leaves
from dynexit.objectives.multi_exit import multi_exit_cross_entropy
from dynexit.training.checkpointing.checkpoints import restore_params
from dynexit.training.logs import Mirror
from dynexit.training.loop import fit
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import put_batch


def source(toy, split, **changes):
    points = toy.points()
    return from_leaves(split, {**points, **{n: f(points[n]) for n, f in changes.items()}})


def train(toy, folder, **words):
    settings = dataclasses.replace(toy.SETTINGS, steps=2)
    experiment = toy.build()._replace(**words)
    return fit(experiment, settings, folder, 0, progress=False)


def no_update(folder):
    return not (folder / "checkpoints").exists() and not (folder / "metrics.jsonl").exists()


@pytest.mark.parametrize("split", ["train", "calibration", "test"])
def test_real_labels_want_a_score_of_their_own(toy, tmp_path, split):
    real = source(toy, split, labels=lambda y: y.astype(np.float32))
    with pytest.raises(TypeError, match=rf"labels of `experiment\.{split}` must be integers"):
        train(toy, tmp_path, **{split: real})
    assert no_update(tmp_path)


def test_real_labels_train_with_a_score_of_their_own(toy, tmp_path):
    splits = {
        split: source(toy, split, labels=lambda y: y.astype(np.float32))
        for split in ("train", "calibration", "test")
    }
    objective = lambda outputs, labels, progress: (
        ((outputs[..., 0] - labels[None]) ** 2).mean(0),
        {},
    )
    method = toy.build().method._replace(objective=objective, score=lambda said, y: -abs(said - y))
    assert train(toy, tmp_path, method=method, **splits).step == 2


@pytest.mark.parametrize("split", ["train", "calibration", "test"])
def test_labels_that_are_no_class_are_refused_first(toy, tmp_path, split):
    wrong = source(toy, split, labels=lambda y: np.full_like(y, len(toy.build().classes)))
    with pytest.raises(ValueError, match=rf"labels of `experiment\.{split}`"):
        train(toy, tmp_path, **{split: wrong})
    assert no_update(tmp_path)


def test_a_nan_in_a_calibration_row_is_refused_first(toy, tmp_path):
    def spoiled(inputs):
        inputs = inputs.copy()
        inputs[7, 2] = np.nan
        return inputs

    with pytest.raises(ValueError, match=r"`experiment\.calibration` .* NaN.* row 7"):
        train(toy, tmp_path, calibration=source(toy, "calibration", inputs=spoiled))
    assert no_update(tmp_path)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_jax_would_wrap_are_refused(toy, tmp_path, seed):
    with pytest.raises(ValueError, match=r"seed must lie in 0\.\.4294967295"):
        fit(toy.build(), toy.SETTINGS, tmp_path, seed, progress=False)


def test_ids_stay_on_the_host(toy, tmp_path):
    points = toy.points()
    ids = np.array([f"scan-{i}" for i in range(toy.EXAMPLES)])
    named = from_leaves("train", {**points, "id": ids})
    fitted = train(toy, tmp_path / "named", train=named)
    plain = train(toy, tmp_path / "plain", train=from_leaves("train", points))
    assert fitted.metrics == plain.metrics
    batch = put_batch(named.batch(0, 0, 8), make_mesh())
    assert set(batch) == {"inputs", "labels"}
    with pytest.raises(TypeError, match="`inputs/words` must be numbers, got <U7"):
        put_batch({"inputs": {"words": ids[:8]}, "labels": points["labels"][:8]}, make_mesh())


def test_the_last_of_256_classes_is_trained_on(toy):
    labels = np.array([255, 255, 7, 9], np.uint8)
    placed = put_batch({"inputs": np.zeros((4, 2)), "labels": labels}, make_mesh())["labels"]
    assert placed.dtype == jnp.int32
    losses = multi_exit_cross_entropy(jnp.zeros((1, 4, 256)), placed)
    np.testing.assert_allclose(losses, np.log(256), rtol=1e-6)


def test_an_address_is_no_folder(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`folder` must be a path of this machine"):
        fit(toy.build(), toy.SETTINGS, "gs://bucket/run", 0, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_train_in_one_folder(toy, tmp_path):
    fitted = train(toy, tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from dynexit.core.folder_lock import in_use\n"
        "with in_use(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(FolderInUse, match=f"in use by process {holder.pid} "):
        train(toy, tmp_path)
    holder.communicate("")
    again = train(toy, tmp_path)
    shapes = jax.eval_shape(toy.build().model.init, jax.random.key(0))
    found = restore_params(tmp_path, shapes).params
    for one, two, three in zip(
        *map(jax.tree.leaves, (fitted.params, again.params, found)), strict=True
    ):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(two, three)


def test_without_locks_of_the_system_training_goes_on(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", None)
    with in_use(tmp_path):
        assert train(toy, tmp_path).step == 2


def test_wandb_is_shown_all_settings(toy, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Mirror, "_start", lambda self, folder, mode, config: shown.append(config))
    settings = dataclasses.replace(toy.SETTINGS, steps=2, wandb="offline")
    config = {"model": {"depth": 3}, "seed": 0}
    fit(toy.build(), settings, tmp_path / "a", 0, progress=False, config=config)
    fit(toy.build(), settings, tmp_path / "b", 0, progress=False)
    assert shown[0] == config
    assert shown[1] == {**dataclasses.asdict(settings), "seed": 0}


def test_a_linked_record_is_replaced(toy, tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "run").mkdir()
    for name in ("metrics.jsonl", "metrics.partial"):
        (tmp_path / "run" / name).symlink_to(target)
    train(toy, tmp_path / "run")
    assert target.read_text() == "precious"
    assert not (tmp_path / "run" / "metrics.jsonl").is_symlink()
