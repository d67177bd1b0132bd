"""Folders of language models: logits of stored numbers, exact round trips, and errors by name."""

import json

import jax
import jax.numpy as jnp
import language_folders as folders
import ml_dtypes
import numpy as np
import pytest

import dynexit as dx
from dynexit.models.hf_config import CONFIG, WEIGHTS
from dynexit.models.hf_folder import INDEX, open_folder
from dynexit.models.language.hf.families import FAMILIES, resolved

from_hf, to_hf = dx.models.language.from_hf, dx.models.language.to_hf

# Logits of tokens 0..3 at the last place of both rows of `folders.TOKENS`: from transformers 5.24 and
# torch 2.13 in float32, by `AutoModelForCausalLM.from_pretrained(folders.write(folder, family))`.
GOLDEN = {
    "gpt2": [[-0.88129, 1.39771, 0.08138, 2.05211], [-0.71274, 1.09358, -1.67922, 2.80844]],
    "llama": [[-1.09702, 1.76935, -0.81556, 1.29819], [0.05303, 0.55387, -0.5796, -0.58817]],
    "smollm": [[-0.76796, -0.79247, -0.43732, 0.12964], [0.46497, 0.96724, -0.84107, 0.5282]],
    "mistral": [[-1.13925, 0.01484, -0.20333, 1.32998], [-0.16013, -3.1054, -0.10033, -0.60412]],
    "qwen2": [[0.93662, 0.11146, -0.027, -0.08497], [0.17478, -1.74341, -0.25429, -0.35045]],
    "qwen3": [[0.54686, -0.25206, 0.17527, 0.16083], [0.53059, -0.68893, -0.55139, -0.61505]],
    "gemma2": [[0.58723, -0.98344, 0.72672, -0.28362], [-0.30307, -0.61789, -0.70635, 0.42369]],
    "gemma3": [[0.80532, -0.9839, -0.09749, -1.33844], [0.67044, -1.72762, -0.83852, 0.3955]],
}


@pytest.fixture(params=GOLDEN)
def family(request):
    return request.param


def bits(folder):
    """Name -> type, shape and bytes of every tensor."""
    found = open_folder(folder)
    arrays = {name: found.read(name) for name in found.tensors}
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}


def test_logits_are_those_of_transformers(tmp_path, family):
    loaded = from_hf(folders.write(tmp_path / "m", family))
    assert loaded.architecture == folders.CONFIGS[family]["architectures"][0]
    logits = folders.logits_of(loaded, folders.TOKENS)
    bar = 2e-5 * np.abs(logits).max()
    np.testing.assert_allclose(logits[:, -1, :4], GOLDEN[family], atol=bar, rtol=0)


def test_parameters_are_those_of_the_model(tmp_path, family):
    loaded = from_hf(folders.write(tmp_path / "m", family))
    wanted = jax.eval_shape(loaded.model.init, jax.random.key(0))
    assert jax.tree.structure(loaded.params) == jax.tree.structure(wanted)
    assert jax.tree.map(jnp.shape, loaded.params) == jax.tree.map(lambda a: a.shape, wanted)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_round_trip_keeps_every_bit(tmp_path, family, dtype):
    first = folders.write(tmp_path / "first", family, dtype)
    loaded = from_hf(first)
    assert {a.dtype for a in jax.tree.leaves(loaded.params)} == {np.dtype(dtype)}
    second = to_hf(tmp_path / "second", loaded)
    assert bits(second) == bits(first)
    before, after = (json.loads((folder / CONFIG).read_text()) for folder in (first, second))
    written = {after.pop(name, None) for name in ("dtype", "torch_dtype")} - {None}
    assert written == {np.dtype(dtype).name}
    assert after == {k: v for k, v in before.items() if k not in ("dtype", "torch_dtype")}


def test_own_settings_are_written_as_a_class_that_has_them(tmp_path, family):
    loaded = from_hf(folders.write(tmp_path / "m", family))
    again = from_hf(to_hf(tmp_path / "n", loaded.settings, loaded.params))
    assert again.settings == loaded.settings
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


def test_types_are_converted(tmp_path):
    folder = folders.write(tmp_path / "m", "llama")
    half, whole = from_hf(folder, jnp.bfloat16), from_hf(folder)
    assert {a.dtype for a in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    cast = jax.tree.map(lambda a: a.astype(jnp.bfloat16), whole.params)
    jax.tree.map(np.testing.assert_array_equal, half.params, cast)
    near = folders.logits_of(half, folders.TOKENS) - folders.logits_of(whole, folders.TOKENS)
    assert 0 < np.abs(near).max() < 0.1
    with pytest.raises(TypeError, match="`dtype` must be a floating point type"):
        from_hf(folder, jnp.int8)


def split(folder, family):
    """The tensors in two shards with an index."""
    from safetensors.numpy import save_file

    (folder / WEIGHTS).unlink()
    arrays, places = folders.tensors(family), {}
    for k in range(2):
        file = f"model-{k + 1:05d}-of-00002.safetensors"
        part = {name: arrays[name] for name in sorted(arrays)[k::2]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_shards_are_read(tmp_path):
    whole, parts = (folders.write(tmp_path / name, "qwen2") for name in ("whole", "parts"))
    split(parts, "qwen2")
    both = from_hf(whole).params, from_hf(parts).params
    jax.tree.map(np.testing.assert_array_equal, *both)


def with_tensors(folder, change):
    """Writes the file again after `change(tensors)`."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / WEIGHTS)
    change(arrays)
    save_file(arrays, folder / WEIGHTS)
    return folder


def test_names_of_older_folders(tmp_path):
    """Without the name of the trunk, with the buffers of causal masks and frequencies."""

    def older(arrays):
        for name in list(arrays):
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)
        arrays["h.0.attn.bias"] = np.ones((1, 1, 4, 4), bool)
        arrays["h.1.attn.masked_bias"] = np.float32([-1e4])

    folder = folders.write(tmp_path / "m", "gpt2")
    new = from_hf(folder)
    old = from_hf(with_tensors(folder, older))
    jax.tree.map(np.testing.assert_array_equal, new.params, old.params)
    rates = "model.layers.0.self_attn.rotary_emb.inv_freq"
    buffers = lambda arrays: arrays.update({rates: np.ones(1, np.float32)})
    from_hf(with_tensors(folders.write(tmp_path / "l", "mistral"), buffers))


W = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda a: a.pop(W), f"has no tensor '{W}'"),
        (lambda a: a.update({W: a[W].T.copy()}), rf"'{W}' must have shape \[12, 8\], got \[8, 12\]"),
        (lambda a: a.update({W: a[W] * np.nan}), f"model.safetensors: '{W}' has values that are not"),
        (lambda a: a.update({"extra.weight": a[W]}), "model.safetensors has a tensor 'extra.weight'"),
        (lambda a: a.update({W: a[W].astype(np.float16)}), "is of float16, in the first .* float32"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words):
    folder = with_tensors(folders.write(tmp_path / "m", "llama"), change)
    with pytest.raises(ValueError, match=words):
        from_hf(folder)


def test_a_tied_output_matrix_must_be_the_embedding(tmp_path):
    both = lambda a: a.update({"lm_head.weight": a["model.embed_tokens.weight"]})
    folder = with_tensors(folders.write(tmp_path / "m", "smollm"), both)
    assert "logits" not in from_hf(folder).params["head"]
    other = lambda a: a.update({"lm_head.weight": a["lm_head.weight"] + 1})
    with pytest.raises(ValueError, match=r"'lm_head.weight' must equal the embedding, since 'tie_"):
        from_hf(with_tensors(folder, other))


@pytest.mark.parametrize(
    "name, changed, words",
    [
        ("llama", {"architectures": ["MixtralForCausalLM"]}, "LlamaForCausalLM, .*got Mixtral"),
        ("llama", {"architectures": None, "model_type": "mamba"}, "one of Llama.* got mamba"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'rope_type' .*'yarn'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'type' .*'dynamic'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "'factor' must be given"),
        ("llama", {"quantization_config": {"bits": 4}}, "'quantization_config' must be absent, .*4"),
        ("llama", {"num_local_experts": 8}, "'num_local_experts' must be absent"),
        ("llama", {"sliding_windows": 8}, "the option 'sliding_windows' is not known"),
        ("llama", {"hidden_act": "relu"}, "'hidden_act' must be one of silu, .* got 'relu'"),
        ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' must be 1.0"),
        ("llama", {"num_attention_heads": 3}, "config.json: kv_heads must divide heads, got 2 and 3"),
        ("mistral", {"attention_bias": True}, "the option 'attention_bias' is not known"),
        ("qwen2", {"layer_types": ["full_attention"]}, "'layer_types' must be .* for each block"),
        ("gemma2", {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
        ("gemma3", {"rope_parameters": {"rope_theta": 1.0}}, "the option 'rope_theta' is not known"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "'attn_logit_softcapping' must be absent"),
        ("gpt2", {"scale_attn_weights": False}, "'scale_attn_weights' must be True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx'"),
        ("gpt2", {"n_embd": 10}, "must have shape"),
    ],
)  # fmt: skip
def test_options_that_are_not_supported_are_named(tmp_path, name, changed, words):
    with pytest.raises(ValueError, match=words):
        from_hf(folders.write(tmp_path / "m", name, **changed))


def test_damage_is_named_with_its_file(tmp_path):
    folder = folders.write(tmp_path / "m", "llama")
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"model.safetensors is no whole safetensors file"):
        from_hf(folder)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle.*save_pretrained"):
        from_hf(folder)


def test_what_no_class_has_is_not_written(tmp_path):
    settings = dx.models.CausalLM(width=8, depth=1, heads=2, norm="layer")
    params = settings.build(dx.Tokens(9), 9).init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"no class of transformers .* nearest, Llama.* norm='rms'"
    ):
        to_hf(tmp_path / "a", settings, params)
    plain = dx.models.CausalLM(width=8, depth=1, heads=2)
    params = plain.build(dx.Tokens(9), 9).init(jax.random.key(0))
    with pytest.raises(TypeError, match="`params` must be given with settings"):
        to_hf(tmp_path / "a", plain)
    with pytest.raises(ValueError, match="'extra', and LlamaForCausalLM has nothing like it"):
        to_hf(tmp_path / "a", plain, {**params, "extra": jnp.ones(2)})
    with pytest.raises(ValueError, match="1 blocks of 'blocks/norm1/weight', and the settings"):
        to_hf(tmp_path / "a", dx.models.CausalLM(width=8, depth=2, heads=2), params)
    with pytest.raises(ValueError, match=r"'blocks/up/weight' of `params` must end in \(32, 8\)"):
        to_hf(tmp_path / "a", dx.models.CausalLM(width=8, depth=1, heads=2, hidden=32), params)
    with pytest.raises(ValueError, match="must have 'blocks/query/bias', which the settings"):
        to_hf(tmp_path / "a", dx.models.CausalLM(width=8, depth=1, heads=2, qkv_bias=True), params)
    assert not (tmp_path / "a").exists()


def test_a_file_is_read_by_its_model_type_too(tmp_path):
    found = {
        from_hf(folders.write(tmp_path / name, name, architectures=None)).architecture
        for name in GOLDEN
    }
    assert found == set(FAMILIES)


def test_resolved_settings_are_equal_settings():
    s = dx.models.CausalLM(width=8, heads=2, depth=2, window=3, sliding=(True, True))
    assert resolved(s).sliding == () and resolved(s).window == 3
    assert (
        resolved(dx.models.CausalLM(width=8, heads=2, attention_scale=0.5)).attention_scale is None
    )
