"""ViT, DINOv2, BERT and ALBERT: the numbers of transformers, and checkpoints that are refused."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from encoder_goldens import CASES, goldens, inputs, of_transformers, weights, write

import dynexit as dx
from dynexit.models.features import features
from dynexit.models.hf_config import CONFIG, WEIGHTS
from dynexit.models.hf_folder import open_folder, write_folder
from dynexit.models.language.encoder import bert_encoder
from dynexit.models.vision.encoder import resampling, vit_encoder

STORED = goldens()
every_case = pytest.mark.parametrize("name", CASES)


def reader(name):
    vision = CASES[name][2] is not None
    return dx.models.vision.from_hf if vision else dx.models.language.from_hf_encoder


def writer(name):
    vision = CASES[name][2] is not None
    return dx.models.vision.to_hf if vision else dx.models.language.to_hf_encoder


def states(folder, name):
    """Tokens after every block `[N, B, L, D]`, those after the last norm, and which are real."""
    found, x = reader(name)(folder), inputs(name)
    model, image = found.model, CASES[name][2]
    if image is not None and image != found.settings.image:
        model = vit_encoder(found.settings, (*image, 2), None)
    run = jax.jit(lambda p, x: (features(model, p, x), hidden(model, p, x)))
    after, last = run(found.params, x)
    if isinstance(x, dict):
        after = {n: state["hidden"] for n, state in after.items()}
    real = x["tokens"] != 0 if isinstance(x, dict) else np.ones(last.shape[1:3], bool)
    return np.stack(list(after.values())), np.asarray(last[-1]), real


def hidden(model, params, x):
    return dx.run_all(model.steps(params), model.embed(params, x), model.depth)["hidden"]


def off(ours, theirs, real):
    """The largest difference, as a fraction of the largest number."""
    theirs = np.asarray(theirs)
    return np.abs(ours - theirs)[..., real, :].max() / np.abs(theirs).max()


@every_case
def test_the_numbers_are_those_of_transformers(name, tmp_path):
    pytest.importorskip("transformers")
    folder = write(tmp_path / "m", name, STORED)
    ours, last, real = states(folder, name)
    theirs, norm = of_transformers(folder, name)
    assert off(ours, theirs, real) < 2e-5 and off(last, norm, real) < 2e-5


@every_case
def test_the_numbers_are_those_that_are_stored(name, tmp_path):
    ours, last, real = states(write(tmp_path / "m", name, STORED), name)
    assert off(last, STORED[name]["last"], real) < 2e-5
    first = np.asarray(STORED[name]["hidden"])
    assert np.abs(ours[:, :, 0] - first).max() < 2e-5 * np.abs(first).max()


@every_case
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_checkpoint_is_written_as_it_was_read(name, dtype, tmp_path):
    config, tensors = STORED[name]["config"], weights(STORED[name]["shapes"])
    tensors = {n: a.astype(dtype) for n, a in tensors.items()}
    first = write_folder(tmp_path / "a", config, tensors)
    found = reader(name)(first)
    again = writer(name)(tmp_path / "b", found.settings, found.params, found.original)
    assert (first / CONFIG).read_text() == (again / CONFIG).read_text()
    opened = open_folder(again)
    assert set(opened.tensors) == set(tensors)
    for n, a in tensors.items():
        assert opened.read_any(n).dtype == dtype and opened.read_any(n).tobytes() == a.tobytes(), n


@pytest.mark.parametrize("name", ["vit", "dinov2, gated", "bert", "albert, groups"])
def test_a_network_of_ones_own_is_written_and_read(name, tmp_path):
    settings = reader(name)(write(tmp_path / "old", name, STORED)).settings
    shape = (8, 12, 2) if name == "vit" else (8, 8, 2) if "dino" in name else dx.Tokens(20, 6)
    model = settings.build(shape, 3)
    params = jax.jit(model.init)(jax.random.key(0))
    found = reader(name)(writer(name)(tmp_path / "new", settings, params))
    assert found.settings == settings
    jax.tree.map(np.testing.assert_array_equal, found.params["trunk"], params["trunk"])
    transformers = pytest.importorskip("transformers")
    loaded, info = transformers.AutoModel.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert loaded.config.model_type == settings.kind and not info["unexpected_keys"]
    assert all("pooler" in key for key in info["missing_keys"])


def test_names_of_the_first_checkpoints_of_bert_are_read_and_kept(tmp_path):
    old = lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )
    tensors = weights(STORED["bert"]["shapes"])
    renamed = {old(n): a for n, a in tensors.items()}
    assert set(renamed) != set(tensors)
    renamed["embeddings.position_ids"] = np.arange(12)[None]
    read = dx.models.language.from_hf_encoder
    new = read(write_folder(tmp_path / "new", STORED["bert"]["config"], tensors))
    found = read(write_folder(tmp_path / "old", STORED["bert"]["config"], renamed))
    jax.tree.map(np.testing.assert_array_equal, found.params, new.params)
    write_again = dx.models.language.to_hf_encoder
    again = write_again(tmp_path / "again", found.settings, found.params, found.original)
    assert set(open_folder(again).tensors) == set(renamed)


TENSOR = {
    "vit": "encoder.layer.1.attention.attention.key.bias",
    "dinov2": "encoder.layer.0.layer_scale1.lambda1",
    "bert": "encoder.layer.1.output.LayerNorm.weight",
    "albert": "encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
}


@pytest.mark.parametrize("name", TENSOR)
def test_tensors_that_do_not_fit_are_named_with_their_file(name, tmp_path):
    config, tensor = STORED[name]["config"], TENSOR[name]
    whole, file = weights(STORED[name]["shapes"]), re.escape(WEIGHTS)
    damaged = whole[tensor].copy()
    damaged.flat[0] = np.nan
    without = {n: a for n, a in whole.items() if n != tensor}
    for k, (tensors, words) in enumerate(
        [
            (without, f"the tensor '{tensor}' is missing"),
            (whole | {"extra.weight": damaged}, "the tensor 'extra.weight' is not known"),
            (whole | {tensor: damaged}, f"'{tensor}' has values that are not finite"),
            (whole | {tensor: damaged[:1]}, f"'{tensor}' must have shape"),
        ]
    ):
        folder = write_folder(tmp_path / str(k), config, tensors)
        with pytest.raises(ValueError, match=f"{k}/{file}: .*{re.escape(words)}"):
            reader(name)(folder)


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("vit", {"model_type": "swin"}, "'model_type' must be one of vit, dinov2, got 'swin'"),
        ("bert", {"model_type": "gpt2"}, "'model_type' must be one of bert, albert, got 'gpt2'"),
        ("vit", {"num_registers": 4}, "the option 'num_registers' is not known"),
        ("bert", {"rope_theta": 1e4}, "the option 'rope_theta' is not known"),
        ("vit", {"hidden_act": "mish"}, "'hidden_act' must be one of gelu"),
        ("vit", {"patch_size": [4, 2]}, "'patch_size' must be square"),
        ("vit", {"num_attention_heads": 3}, "width must be a multiple of heads, got 8 and 3"),
        ("vit", {"layer_norm_eps": 0.0}, "'layer_norm_eps' must be a number above 0, got 0.0"),
        ("bert", {"is_decoder": True}, "'is_decoder' must be False, which alone is supported"),
        ("bert", {"position_embedding_type": "relative_key"}, "'position_embedding_type' must be"),
        ("bert", {"pad_token_id": 20}, "padding must lie in 0..19, got 20"),
        ("albert", {"inner_group_num": 2}, "'inner_group_num' must be 1, which alone"),
        ("albert", {"num_hidden_groups": 3}, "groups must be at most depth, got 3 and 2"),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_name(name, change, words, tmp_path):
    folder = write_folder(tmp_path / "m", STORED[name]["config"] | change, {})
    with pytest.raises(ValueError, match=re.escape(words)):
        reader(name)(folder)


def test_positions_are_interpolated_as_by_torch():
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).normal(size=(1, 3, 5, 5)).astype(np.float32)
    for size in ((5, 5), (8, 3), (1, 13)):
        wanted = torch.nn.functional.interpolate(torch.tensor(grid), size=size, mode="bicubic")
        ours = np.einsum("ih,jw,chw->cij", *(resampling(5, n) for n in size), grid[0])
        np.testing.assert_allclose(ours, wanted[0].numpy(), atol=2e-6)


def test_masks_given_and_padding_mask_the_same_tokens(tmp_path):
    found, x = reader("bert")(write(tmp_path / "m", "bert", STORED)), inputs("bert")
    unpadded = bert_encoder(
        found.settings.__class__(**{**vars(found.settings), "padding": None}),
        dx.Tokens(20, 6),
        None,
    )
    derived = hidden(found.model, found.params, x)
    given = hidden(unpadded, found.params, x | {"mask": x["tokens"] != 0})
    np.testing.assert_array_equal(derived, given)
    whole = hidden(unpadded, found.params, x)
    assert np.abs(whole[:, 1] - derived[:, 1]).max() > 1e-3
    np.testing.assert_allclose(whole[:, 0], derived[:, 0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r'`inputs\["types"\]` must have shape \[2, 6\]'):
        unpadded.embed(found.params, x | {"types": x["types"][:, 1:]})
    with pytest.raises(ValueError, match="at most 12 tokens"):
        unpadded.embed(found.params, np.ones((1, 13), np.int32))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_an_exit_head_reads_the_token_that_it_should(name, pool, tmp_path):
    """With a probe that is the identity on one channel, logits are what it reads."""
    heads = dx.models.ExitHeads(pool=pool)
    folder = write(tmp_path / "m", name, STORED)
    kind = dx.models.PretrainedVit if name == "vit" else dx.models.PretrainedBert
    shape = (8, 12, 2) if name == "vit" else dx.Tokens(20, 6)
    model, x = kind(str(folder), heads).build(shape, 8), inputs(name)
    params = jax.jit(model.init)(jax.random.key(0))
    eye = jnp.broadcast_to(jnp.eye(8), (2, 8, 8))
    params["head"] = {"logits": {"kernel": eye, "bias": jnp.zeros((2, 8))}}
    logits = dx.run_all(model.steps(params), model.embed(params, x), model.depth)
    bare = reader(name)(folder)
    tokens = np.asarray(hidden(bare.model, bare.params, x))
    count = np.ones(tokens.shape[1:3]) if name == "vit" else (x["tokens"] != 0).astype(float)
    mean = (tokens * count[..., None])[:, :, 1:].sum(2) / count[:, 1:].sum(1)[:, None]
    wanted = tokens[:, :, 0] if pool == "cls" else mean
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def test_data_that_do_not_fit_a_folder_are_refused_before_weights_are_read(tmp_path):
    folder = write(tmp_path / "m", "vit", STORED)
    (folder / WEIGHTS).unlink()
    settings = dx.models.PretrainedVit(str(folder))
    assert settings.fits((8, 12, 2), 3) == []
    assert settings.fits((8, 12, 3), 3) == ["channels must be those of the data, 3, got 2"]
    (sentence,) = settings.fits((16, 12, 2), 3)
    assert sentence.startswith("image must be square or that of the data, 16 x 12")
    with pytest.raises(ValueError, match="`PretrainedVit`: channels must be those of the data"):
        settings.build((8, 12, 3), 3)
    with pytest.raises(ValueError, match=r"holds neither model.safetensors nor"):
        settings.build((8, 12, 2), 3)
    assert dx.models.PretrainedVit("no-such-folder").fits((8, 12, 2), 3) == []
    with pytest.raises(ValueError, match="'no-such-folder', which is no folder"):
        dx.models.PretrainedVit("no-such-folder").build((8, 12, 2), 3)
    text = dx.models.PretrainedBert(str(write(tmp_path / "b", "bert", STORED)))
    assert text.fits(dx.Tokens(21, 13), 2) == [
        "vocabulary must be at least that of the data, 21, got 20",
        "positions must be at least the length of the data, 13, got 12",
    ]


def test_images_are_normalised_as_the_folder_says(tmp_path):
    folder, x = write(tmp_path / "m", "dinov2", STORED), inputs("dinov2")
    plain = dx.models.PretrainedVit(str(folder)).build((8, 8, 2), 3)
    settings = dx.models.PretrainedVit(str(folder), normalise=True)
    with pytest.raises(ValueError, match=r"preprocessor_config.json is missing"):
        settings.build((8, 8, 2), 3)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.5, 0.25], "image_std": [0.5, 0.25]}))
    model = settings.build((8, 8, 2), 3)
    params = jax.jit(model.init)(jax.random.key(0))
    wanted = plain.embed(params, (x - np.float32([0.5, 0.25])) / np.float32([0.5, 0.25]))
    np.testing.assert_allclose(model.embed(params, x), wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(TypeError, match="must be floating point, got uint8"):
        model.embed(params, x.astype(np.uint8))
    for wrong in ({"image_mean": [0.5]}, {"image_mean": [0.5, 0.5], "image_std": [0, 1]}, []):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="must hold 2 numbers, one for each channel"):
            settings.build((8, 8, 2), 3)


def test_values_that_the_type_of_the_original_does_not_hold_are_refused(tmp_path):
    config, shapes = STORED["vit"]["config"], STORED["vit"]["shapes"]
    half = {n: a.astype(np.float16) for n, a in weights(shapes).items()}
    found = dx.models.vision.from_hf(write_folder(tmp_path / "half", config, half))
    moved = jax.tree.map(lambda a: a * np.float32(1.0001), found.params)
    with pytest.raises(ValueError, match=r"that float16, the type of .* does not hold"):
        dx.models.vision.to_hf(tmp_path / "a", found.settings, moved, found.original)
    written = dx.models.vision.to_hf(tmp_path / "b", found.settings, moved)
    assert json.loads((written / CONFIG).read_text())["dtype"] == "float32"
    wrong = {"trunk": {**found.params["trunk"], "more": np.ones(1)}}
    with pytest.raises(ValueError, match="`params`: more is not known"):
        dx.models.vision.to_hf(tmp_path / "c", found.settings, wrong)
    other = dx.models.VitEncoder("vit", (8, 12), 2, 4, width=8, depth=3, heads=2, hidden=16)
    with pytest.raises(
        ValueError, match=r"`params`: block/out/kernel must have shape \[3, 2, 4, 8\]"
    ):
        dx.models.vision.to_hf(tmp_path / "d", other, found.params)
