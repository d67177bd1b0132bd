"""Folders as transformers writes them: read lazily, and damage is named with its file."""

import json

import ml_dtypes
import numpy as np
import pytest

from dynexit.models.hf_config import CONFIG, WEIGHTS, Config
from dynexit.models.hf_folder import INDEX, open_folder, write_folder

ONES = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(2, np.float32)}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model", {"model_type": "vit"}, ONES)


def shard(folder, places):
    """The tensors of `ONES` in files by `places`, with an index in place of the whole."""
    from safetensors.numpy import save_file

    (folder / WEIGHTS).unlink()
    for file in set(places.values()):
        save_file({n: ONES[n] for n in places if places[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_written_is_read_bit_by_bit(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(dtype)
    found = open_folder(write_folder(tmp_path / "m", {"x": [1, None]}, {"w": values.T}))
    assert found.config == {"x": [1, None]} and list(found.tensors) == ["w"]
    assert found.tensors["w"].shape == (7, 5)
    read = found.read("w", (7, 5))
    assert read.dtype == dtype and read.tobytes() == np.ascontiguousarray(values.T).tobytes()


def test_shards_are_one_model(folder):
    shard(folder, {"a.weight": "model-1.safetensors", "a.bias": "model-2.safetensors"})
    found = open_folder(folder)
    assert found.tensors["a.bias"].file.name == "model-2.safetensors"
    np.testing.assert_array_equal(found.read("a.weight"), ONES["a.weight"])


def test_transformers_writes_what_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config = transformers.ViTConfig(**sizes, image_size=4, patch_size=2)
    model = transformers.ViTModel(config)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="1KB")
    whole, parts = open_folder(tmp_path / "whole"), open_folder(tmp_path / "parts")
    assert (tmp_path / "parts" / INDEX).is_file() and set(whole.tensors) == set(parts.tensors)
    for name in whole.tensors:
        np.testing.assert_array_equal(whole.read(name), parts.read(name))


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_truncated_file_is_named(folder, kept):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=r"model.safetensors is no whole safetensors file"):
        open_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"])
def test_a_pickle_is_refused_with_the_cure(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    with pytest.raises(ValueError, match=r"is a pickle.*save_pretrained\(new_folder\)"):
        open_folder(folder)


@pytest.mark.parametrize(
    "places, words",
    [
        ({"a.weight": "../x.safetensors"}, "of its own folder"),
        ({"a.weight": "x.bin"}, "must name safetensors files"),
        ({"a.weight": "gone.safetensors"}, "gone.safetensors, which is missing"),
        ({"a.weight": "m.safetensors"}, "'a.bias' is in m.safetensors alone"),
        (
            {"a.weight": "m.safetensors", "a.bias": "m.safetensors", "b": "m.safetensors"},
            "'b' is in model.safetensors.index.json alone",
        ),
        ({}, "'weight_map'"),
    ],
)
def test_an_index_that_does_not_fit_is_named(folder, places, words):
    shard(folder, dict.fromkeys(ONES, "m.safetensors"))
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=words):
        open_folder(folder)


def test_tensors_of_other_shapes_types_and_values_are_named(tmp_path):
    tensors = {
        "nan": np.array([1.0, np.nan], np.float32),
        "ids": np.arange(3),
        "w": np.ones((2, 3), np.float32),
    }
    found = open_folder(write_folder(tmp_path / "m", {}, tensors))
    with pytest.raises(ValueError, match=r"'w' must have shape \[3, 2\], got \[2, 3\]"):
        found.read("w", (3, 2))
    with pytest.raises(
        ValueError, match=r"model.safetensors: 'nan' has values that are not finite"
    ):
        found.read("nan")
    with pytest.raises(ValueError, match="'ids' must be of F32, F16, BF16, got I64"):
        found.read("ids")
    assert found.read_any("ids").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="has no tensor 'gone'"):
        found.read("gone")


def test_a_folder_that_is_none_is_named(tmp_path, folder):
    with pytest.raises(ValueError, match="'google/vit-base', which is no folder; nothing is down"):
        open_folder("google/vit-base")
    with pytest.raises(ValueError, match="must be a path of this machine's file system"):
        open_folder("gs://bucket/vit")
    with pytest.raises(FileExistsError, match="must be new or empty"):
        write_folder(folder, {}, ONES)
    (folder / CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"config.json cannot be read as JSON"):
        open_folder(folder)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(ValueError, match=r"config.json must be an object, got list"):
        open_folder(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(ValueError, match=r"config.json is missing"):
        open_folder(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / CONFIG).write_text("{}")
    with pytest.raises(ValueError, match=r"holds neither model.safetensors nor"):
        open_folder(empty)


def test_a_config_is_read_by_type_and_what_is_not_known_is_refused():
    values = {"n": 3, "eps": 1e-6, "flag": True, "act": "gelu", "side": [4, 6], "old": None}
    config = Config("m", values)
    assert (config.integer("n"), config.number("eps"), config.boolean("flag")) == (3, 1e-6, True)
    assert config.square("side") == (4, 6) and config.square("n") == (3, 3)
    assert config.integer("gone", 5) == 5 and config.choice("act", ("gelu",)) == "gelu"
    with pytest.raises(ValueError, match=r"m/config.json: the option 'old' is not known"):
        config.finish()
    config.only(old=None)
    config.finish()
    for read, words in [
        (lambda: config.integer("n", low=4), "'n' must be an integer of at least 4, got 3"),
        (lambda: config.integer("flag"), "'flag' must be an integer of at least 1, got True"),
        (lambda: config.integer("none"), "'none' must be given, got nothing"),
        (lambda: config.number("act"), "'act' must be a number above 0, got 'gelu'"),
        (lambda: config.boolean("n"), "'n' must be true or false, got 3"),
        (lambda: config.choice("act", ("relu", "silu")), "'act' must be one of relu, silu"),
        (lambda: config.square("act"), "'act' must be an integer of at least 1 or two of them"),
        (lambda: config.only(n=2), "'n' must be 2, which alone is supported, got 3"),
    ]:
        with pytest.raises(ValueError, match=words):
            read()
