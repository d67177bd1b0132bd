"""Checkpoints: damaged ones are never restored, and complete ones are never lost."""

import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.training.checkpointing import checkpoints, manifest
from dynexit.training.checkpointing.checkpoints import CheckpointError, restore, restore_params
from dynexit.training.checkpointing.saver import Saver


def tree(step):
    rng = np.random.default_rng(step)
    return {
        "params": {
            "w": jnp.asarray(rng.normal(size=(40, 30)).astype(np.float32)),
            "half": jnp.full((3, 2), step, jnp.bfloat16),
        },
        "moments": (jnp.zeros((0, 3)), {"count": jnp.int32(step)}),
        "key": jax.random.key(step),
    }


def save(folder, *steps, keep=5):
    with Saver(folder, keep, seed=7) as saver:
        for step in steps:
            saver.save(step, tree(step))


def bits(t):
    return {name: np.asarray(leaf).tobytes() for name, leaf in checkpoints.named_leaves(t).items()}


def step_folder(folder, step):
    return folder / "checkpoints" / f"{step:08d}"


def test_every_leaf_is_restored_bit_by_bit_and_old_checkpoints_are_deleted(tmp_path):
    save(tmp_path, 1, 2, 3, keep=2)
    found = restore(tmp_path, tree(0))
    assert (found.step, found.seed) == (3, 7)
    assert bits(found.tree) == bits(tree(3))
    assert jax.tree.structure(found.tree) == jax.tree.structure(tree(3))
    assert jax.random.normal(found.tree["key"]) == jax.random.normal(jax.random.key(3))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000003"]


def test_parameters_alone(tmp_path):
    save(tmp_path, 5)
    params, step = restore_params(tmp_path, jax.eval_shape(lambda: tree(0)["params"]))
    assert step == 5 and bits(params) == bits(tree(5)["params"])
    with pytest.raises(FileNotFoundError, match=r"`checkpoint` .*nowhere: it has no checkpoint"):
        restore_params(tmp_path / "nowhere", {})


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_detected_and_the_checkpoint_before_is_restored(tmp_path, place):
    save(tmp_path, 1, 2)
    arrays = max(
        (p for p in (step_folder(tmp_path, 2) / "arrays").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(arrays.read_bytes())
    data[int(place * len(data))] ^= 4
    arrays.write_bytes(data)
    with pytest.warns(
        RuntimeWarning,
        match=r"00000002 is skipped: (params/w: sha256 is|its arrays cannot be read)",
    ):
        found = restore(tmp_path, tree(0))
    assert found.step == 1 and bits(found.tree) == bits(tree(1))


def test_wrong_data_that_can_be_read_is_detected_by_its_sha256(tmp_path):
    save(tmp_path, 1, 2)
    shutil.rmtree(step_folder(tmp_path, 2) / "arrays")
    shutil.copytree(step_folder(tmp_path, 1) / "arrays", step_folder(tmp_path, 2) / "arrays")
    with pytest.warns(
        RuntimeWarning, match=r"00000002 is skipped: key: sha256 is \w{64}, \w{64} was saved"
    ):
        assert restore(tmp_path, tree(0)).step == 1


def test_truncated_arrays_missing_arrays_and_an_edited_manifest(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    largest = max(
        (p for p in (step_folder(tmp_path, 2) / "arrays").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    largest.write_bytes(largest.read_bytes()[:50])
    shutil.rmtree(step_folder(tmp_path, 3) / "arrays")
    path = step_folder(tmp_path, 4) / "manifest.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'))
    with pytest.warns(RuntimeWarning) as warned:
        assert restore(tmp_path, tree(0)).step == 1
    reasons = [str(w.message) for w in warned]
    assert "00000004 is skipped: manifest.json differs from what was written" in reasons[0]
    assert "00000003 is skipped: its arrays cannot be read" in reasons[1]
    assert "00000002 is skipped: its arrays cannot be read" in reasons[2]


def test_all_damaged_is_an_error_and_all_incomplete_is_a_new_start(tmp_path):
    save(tmp_path, 1)
    path = step_folder(tmp_path, 1) / "manifest.json"
    good = path.read_text()
    path.write_text(good[:40])
    with (
        pytest.warns(RuntimeWarning, match="cannot be read"),
        pytest.raises(CheckpointError, match=r"no undamaged .* 1 damaged"),
    ):
        restore(tmp_path, tree(0))
    path.unlink()
    with pytest.warns(RuntimeWarning, match="it was not saved completely"):
        assert restore(tmp_path, tree(0)) is None


@pytest.mark.parametrize(
    "change, text",
    [
        (
            {"w": jnp.zeros((40, 31)), "half": jnp.zeros((3, 2), jnp.bfloat16)},
            r"params/w is float32\[40, 30\], .*\[40, 31\]",
        ),
        (
            {"w": jnp.zeros((40, 30)), "half": jnp.zeros((3, 2))},
            r"params/half is bfloat16\[3, 2\], .* requires float32\[3, 2\]",
        ),
        (
            {"v": jnp.zeros((40, 30))},
            r"has no leaf params/v, which the model requires; it has key, moments/0",
        ),
    ],
)
def test_another_model_is_an_error_that_names_the_leaf(tmp_path, change, text):
    save(tmp_path, 1)
    with pytest.raises(ValueError, match=text):
        restore(tmp_path, {"params": change})


def test_a_full_disk_names_folder_and_size_and_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100))
    with pytest.raises(
        CheckpointError,
        match=r"step 2 could not be written to .*checkpoints, which needs .* MB are free",
    ):
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert restore(tmp_path, tree(0)).step == 1


def test_a_disk_that_fills_while_writing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, 1, keep=1)
    monkeypatch.setattr(manifest, "write", full)
    saver = Saver(tmp_path, 1, seed=7)
    saver.save(2, tree(2))
    with pytest.raises(
        CheckpointError, match="No space left on device; checkpoints saved before are untouched"
    ):
        saver.finish()
    monkeypatch.undo()
    saver.save(3, tree(3))
    saver.finish()
    assert restore(tmp_path, tree(0)).step == 3
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000003"]


def test_a_failed_save_does_not_hide_the_exception_that_ended_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: (_ for _ in ()).throw(OSError("no disk"))
    )
    with (
        pytest.warns(RuntimeWarning, match="could not be written"),
        pytest.raises(KeyError, match="first"),
    ):
        with Saver(tmp_path, 1, seed=0) as saver:
            saver.save(1, tree(1))
            raise KeyError("first")


def test_an_incomplete_checkpoint_is_neither_counted_nor_hides_a_later_one(tmp_path):
    step_folder(tmp_path, 9).mkdir(parents=True)
    save(tmp_path, 1, 2, keep=1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000009"]
    checkpoints.set_aside_after(tmp_path, 2)
    assert restore(tmp_path, tree(0)).step == 2
    assert (tmp_path / "checkpoints" / "00000009.aside").is_dir()


def test_the_manifest_is_plain_json(tmp_path):
    save(tmp_path, 4)
    content = json.loads((step_folder(tmp_path, 4) / "manifest.json").read_text())
    assert content["step"] == 4 and content["leaves"]["params/half"]["dtype"] == "bfloat16"
    assert content["leaves"]["moments/0"]["shape"] == [0, 3]


def test_slices_that_do_not_cover_a_leaf_are_damage(tmp_path):
    save(tmp_path, 1, 2)
    found = manifest.read(step_folder(tmp_path, 2))
    fewer = [each for each in found.slices if each.leaf != "params/w"]
    manifest.write(step_folder(tmp_path, 2), found._replace(slices=fewer))
    with pytest.warns(RuntimeWarning, match="is skipped: params/w lacks 1200 of 1200 elements"):
        assert restore(tmp_path, tree(0)).step == 1
