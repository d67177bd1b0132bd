"""Random language models of transformers: its logits are ours, from whole sequences and a cache."""

import jax
import language_folders as folders
import numpy as np
import pytest

import dynexit as dx

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

BAR = 2e-5  # of the largest logit
VOCABULARY, LENGTH = 23, 9
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))]


def pick(random, *options):
    return options[random.integers(len(options))]


def rope(random, theta):
    kind = pick(random, "default", "linear", "llama3")
    found = {"rope_type": kind, "rope_theta": theta}
    if kind != "default":
        found["factor"] = float(random.uniform(1.5, 8))
    if kind == "llama3":
        found |= dict(low_freq_factor=1.0, high_freq_factor=4.0)
        found |= dict(original_max_position_embeddings=int(random.integers(8, 64)))
    return found


def drawn(family, random):
    """A random configuration, as a class of transformers."""
    heads, head = pick(random, 2, 4, 6), pick(random, 2, 4, 8)
    depth, width = int(random.integers(1, 4)), heads * head
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=width, n_layer=depth, n_head=heads, n_positions=16,
            n_inner=pick(random, None, 10), layer_norm_epsilon=pick(random, 1e-5, 1e-3),
            activation_function=pick(random, "gelu_new", "gelu"), bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    own = family in ("qwen3", "gemma2", "gemma3")  # whose heads need not add up to the width
    shared = dict(
        vocab_size=VOCABULARY, hidden_size=heads * pick(random, 2, 4) if own else width,
        num_hidden_layers=depth, num_attention_heads=heads,
        num_key_value_heads=pick(random, *(n for n in (1, 2, 3, heads) if not heads % n)),
        intermediate_size=int(random.integers(5, 30)), max_position_embeddings=32, head_dim=head,
        rms_norm_eps=pick(random, 1e-6, 1e-3), tie_word_embeddings=pick(random, True, False),
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    window, bias = int(random.integers(2, 6)), pick(random, True, False)
    theta = float(random.uniform(20, 1e4))
    one = {"rope_parameters": rope(random, theta)}
    layers = [pick(random, "sliding_attention", "full_attention") for _ in range(depth)]
    gemma = dict(
        attention_bias=bias, sliding_window=window, layer_types=layers,
        query_pre_attn_scalar=int(random.integers(1, 20)),
        final_logit_softcapping=pick(random, None, 2.0), 
        attn_logit_softcapping=pick(random, None, 1.0) if family == "gemma2" else None,
    )  # fmt: skip
    if family in ("llama", "smollm"):
        return transformers.LlamaConfig(**shared, **one, attention_bias=bias, mlp_bias=not bias)
    if family == "mistral":
        return transformers.MistralConfig(
            **shared, **one, sliding_window=pick(random, None, window)
        )
    if family == "qwen2":
        del shared["head_dim"]
    if family in ("qwen2", "qwen3"):
        made = transformers.Qwen2Config if family == "qwen2" else transformers.Qwen3Config
        biased = {} if family == "qwen2" else {"attention_bias": bias}
        slides = dict(use_sliding_window=True, sliding_window=window, layer_types=layers)
        return made(**shared, **one, **biased, **slides)
    if family == "gemma2":
        return transformers.Gemma2Config(**shared, **one, **gemma)
    near = {"rope_type": "default", "rope_theta": float(random.uniform(5, 100))}
    far = pick(random, {"rope_type": "default"}, {"rope_type": "linear", "factor": 3.0})
    both = {"full_attention": {**far, "rope_theta": theta}, "sliding_attention": near}
    return transformers.Gemma3TextConfig(**shared, **gemma, rope_parameters=both)


def made(family, seed, folder):
    """A model with weights that matter, its folder, and what dynexit reads there."""
    random = np.random.default_rng((seed, len(family), ord(family[-1])))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(drawn(family, random)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return model, dx.models.language.from_hf(folder), random


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", folders.CONFIGS)
def test_logits_are_those_of_transformers(tmp_path, family, seed):
    """Rows padded on the left, on the right, and not at all."""
    model, loaded, random = made(family, seed, tmp_path)
    tokens, place = random.integers(0, VOCABULARY, (3, LENGTH)), np.arange(LENGTH)
    mask = np.stack([place >= 3, place < 6, place >= 0])
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    with torch.no_grad():
        named = dict(
            attention_mask=torch.from_numpy(mask), position_ids=torch.from_numpy(positions)
        )
        wanted = model(torch.from_numpy(tokens), **named).logits.numpy()
    bar = BAR * np.abs(wanted).max()
    logits = folders.logits_of(loaded, {"tokens": tokens, "mask": mask})
    np.testing.assert_allclose(logits[mask], wanted[mask], atol=bar, rtol=0)
    cached = decoded(loaded, tokens, positions, mask)
    np.testing.assert_allclose(cached[mask], wanted[mask], atol=bar, rtol=0)


def decoded(loaded, tokens, positions, mask):
    """Logits from the cached form: several tokens at once, then one by one."""
    decoder = loaded.model.decoder
    weights = decoder.unstack(loaded.params)

    @jax.jit
    def part(weights, tokens, at, cache):
        state = decoder.embed(weights, tokens, at)
        state, cache = decoder.blocks(weights, 0, decoder.depth, state, at, cache)
        return decoder.logits(weights, state), cache

    cache, found = decoder.empty(weights, 3, LENGTH), []
    places = np.where(mask, positions, LENGTH).astype(np.int32)  # what is padded is not written
    for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
        part_of = tokens[:, start:end], places[:, start:end]
        logits, cache = part(weights, *part_of, cache)
        found.append(np.asarray(logits))
    return np.concatenate(found, 1)


@pytest.mark.parametrize("family", folders.CONFIGS)
def test_transformers_reads_what_is_written(tmp_path, family):
    """From the settings alone: the class is chosen, and nothing is missing or unexpected."""
    _, loaded, random = made(family, 3, tmp_path / "first")
    path = dx.models.language.to_hf(tmp_path / "second", loaded.settings, loaded.params)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values())
    tokens = random.integers(0, VOCABULARY, (2, LENGTH))
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(tokens)).logits.numpy()
    bar = BAR * np.abs(wanted).max()
    np.testing.assert_allclose(folders.logits_of(loaded, tokens), wanted, atol=bar, rtol=0)


@pytest.mark.parametrize("family", folders.CONFIGS)
def test_the_folders_of_the_tests_are_those_of_transformers(tmp_path, family):
    """The recipe of the stored logits of `test_hf_language.py`."""
    path = folders.write(tmp_path / "m", family)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(folders.TOKENS)).logits.numpy()
    logits = folders.logits_of(dx.models.language.from_hf(path), folders.TOKENS)
    np.testing.assert_allclose(logits, wanted, atol=BAR * np.abs(wanted).max(), rtol=0)
