"""Slices of arrays, and how processes agree that all are saved."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.core.settings import Mesh
from dynexit.training.checkpointing import manifest
from dynexit.training.checkpointing.slices import (
    Box,
    assembled,
    box_of,
    held,
    joined,
    needed,
    overlap,
)
from dynexit.training.parallel.mesh import make_mesh

ARRAY = np.arange(6 * 8 * 4).reshape(6, 8, 4)


def cut(shape, parts):
    """The boxes of an array cut into `parts` along each axis, and their values."""
    sizes = [n // k for n, k in zip(shape, parts, strict=True)]
    for place in itertools.product(*map(range, parts)):
        start = tuple(p * n for p, n in zip(place, sizes, strict=True))
        index = tuple(slice(s, s + n) for s, n in zip(start, sizes, strict=True))
        yield Box(start, tuple(sizes)), ARRAY[index]


@pytest.mark.parametrize("saved", [(1, 1, 1), (2, 1, 4), (3, 8, 1), (6, 4, 2)])
@pytest.mark.parametrize("wanted", [(1, 1, 1), (1, 2, 2), (6, 1, 1), (2, 8, 4)])
def test_any_parts_are_assembled_from_any_others(saved, wanted):
    pieces = list(cut(ARRAY.shape, saved))
    for box, values in cut(ARRAY.shape, wanted):
        np.testing.assert_array_equal(assembled(box, pieces, ARRAY.dtype), values)
        with pytest.raises(LookupError, match=r"of \d+ elements"):
            assembled(box, [(b, v) for b, v in pieces if overlap(b, box) is None], ARRAY.dtype)


def test_parts_that_fill_a_box_are_joined_and_others_are_not():
    boxes = dict(cut(ARRAY.shape, (1, 2, 2)))
    (whole,) = joined(boxes).items()
    assert whole[0] == Box((0, 0, 0), ARRAY.shape)
    np.testing.assert_array_equal(whole[1], ARRAY)
    boxes.popitem()
    assert joined(boxes) == boxes


def test_a_device_needs_its_own_parts_and_one_process_saves_an_array_whole():
    mesh = make_mesh(Mesh(fsdp=2, model=2))
    spec = jax.sharding.PartitionSpec(None, "fsdp", "model")
    split = jax.device_put(jnp.asarray(ARRAY), jax.sharding.NamedSharding(mesh, spec))
    assert sorted(needed(split)) == sorted(box for box, _ in cut(ARRAY.shape, (1, 2, 2)))
    ((box, values),) = held(split).items()
    assert box == Box((0, 0, 0), ARRAY.shape)
    np.testing.assert_array_equal(values, ARRAY)
    assert needed(jax.ShapeDtypeStruct((2, 3), jnp.float32)) == [Box((0, 0), (2, 3))]
    assert needed(jnp.int32(3)) == [Box((), ())] == [box_of((), ())]


def test_process_0_waits_for_the_parts_of_this_save_and_names_the_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "WAIT", 0.2)
    slices = manifest.entries({"w": {Box((2,), (2,)): np.ones(2)}}, 1)
    manifest.write_part(tmp_path, 1, "7-1", slices)
    assert manifest.read_parts(tmp_path, [1], "7-1") == slices
    with pytest.raises(OSError, match="no slices of process 1 arrived"):
        manifest.read_parts(tmp_path, [1], "7-2")
    with pytest.raises(OSError, match="no slices of process 2, 3 arrived"):
        manifest.read_parts(tmp_path, [1, 2, 3], "7-1")
    manifest.write_failure(tmp_path, 1, "7-1", "No space left on device")
    with pytest.raises(OSError, match="process 1: No space left on device"):
        manifest.read_parts(tmp_path, [1], "7-1")


def test_the_others_wait_for_the_manifest_of_this_save(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "WAIT", 0.2)
    manifest.write(tmp_path, manifest.Manifest(3, 0, {}, [], attempt="7-1"))
    manifest.wait_for(tmp_path, "7-1")
    with pytest.raises(OSError, match="process 0 did not complete it"):
        manifest.wait_for(tmp_path, "7-2")
    manifest.write_failure(tmp_path, 0, "7-2", "No space left on device")
    with pytest.raises(OSError, match="process 0: No space left on device"):
        manifest.wait_for(tmp_path, "7-2")
