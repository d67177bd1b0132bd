"""Text of an exported file against that of `generate`."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from without_dynexit import read_without_dynexit

import dynexit as dx
from dynexit.decoding import EarlyExit, Exits, PromptLookup, Sampling, export, generate

V, N, P, MOST = 30, 3, 12, 10
MODEL = dx.models.CausalLM(width=16, depth=N, heads=2, context=64).build(dx.Tokens(V), V)
PARAMS = MODEL.init(jax.random.key(0))
# large weights: the text depends on its beginning, and no two logits are close
PARAMS = PARAMS | {
    "blocks": jax.tree.map(lambda a: 3 * a if a.ndim > 2 else a, PARAMS["blocks"]),
    "embed": {"tokens": 30 * PARAMS["embed"]["tokens"]},
}
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(0, V, n) for n in (3, 9, 1, 12)]
LIMITS = [7, 10, 4, 9]
HEAD = {"block": jax.tree.map(lambda a: a[0], PARAMS["blocks"])}
SIZES = {"prompt": P, "tokens": MOST, "slots": 2, "chunk": 4}


def requests(rows, **others):
    """The first prompts, with anything behind them."""
    tokens = np.full((rows, P), V - 1, np.int32)
    for row, prompt in zip(tokens, PROMPTS, strict=False):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in PROMPTS[:rows]], np.int32)
    stops = np.full((rows, 8), -1, np.int32)
    limits = np.array(LIMITS[:rows], np.int32)
    return {"tokens": tokens, "length": lengths, "limit": limits, "stops": stops, **others}


def check(written, wanted, names=("tokens", "depth")):
    for k, tokens in enumerate(wanted.tokens):
        assert written["length"][k] == len(tokens)
        for name in names:
            row = np.asarray(written[name][k])
            np.testing.assert_allclose(row[: len(tokens)], getattr(wanted, name)[k], atol=1e-5)
            assert not row[len(tokens) :].any()
    reasons = ["stop" if reason == 1 else "length" for reason in written["reason"].tolist()]
    assert reasons == wanted.reason


def test_a_file_writes_the_text_of_generate_without_dynexit(tmp_path):
    """It is exported without weights, and a row without tokens to write is padding."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    file = export(MODEL, shapes, tmp_path / "text", draft=EarlyExit(1, 2), **SIZES)
    assert file.inputs.keys() == {"tokens", "length", "limit", "stops"}
    asked, limits = requests(4), [*LIMITS[:3], 0]
    asked["limit"][3] = 0
    drafts = {"costs": np.ones(2, np.float32)}
    (written,) = read_without_dynexit(tmp_path, [("text", (asked, PARAMS, drafts))])
    assert written["length"].tolist() == limits and written["depth"].shape == (4, MOST)
    wanted = generate(MODEL, PARAMS, PROMPTS[:3], LIMITS[:3])
    check({name: value[:3] for name, value in written.items()}, wanted, ["tokens"])
    assert written["accepted"][:3].sum() == (written["depth"] == 1).sum() > 0


def kept(folder, arguments, **given):
    """What a file of these arguments of `generate` writes."""
    file = export(MODEL, PARAMS, folder / "text", **SIZES, **given)
    content = bytearray(file.path.read_bytes())
    return jax.jit(jax.export.deserialize(content).call)(*arguments)


@pytest.mark.slow
def test_prompt_lookup_and_a_head_with_a_short_list(tmp_path):
    wanted = generate(MODEL, PARAMS, PROMPTS, LIMITS)
    costs = {"costs": jnp.ones(2)}
    for rows in (4, 1):
        written = kept(tmp_path, (requests(rows), PARAMS, costs), draft=PromptLookup(3, 2))
        check(written, generate(MODEL, PARAMS, PROMPTS[:rows], LIMITS[:rows]))
    among = jnp.arange(0, V, 2, dtype=jnp.int32)
    drafts = {**costs, "among": among, "head": HEAD}
    given = dict(draft=EarlyExit(2, 2, among=among, head=HEAD))
    check(kept(tmp_path, (requests(4), PARAMS, drafts), **given), wanted, ["tokens"])


@pytest.mark.slow
def test_exits_and_log_probabilities(tmp_path):
    given = dict(exits=Exits((1, 2), dx.criteria.margin_above(0.1)), log_probabilities=True)
    wanted = generate(MODEL, PARAMS, PROMPTS, LIMITS, **given)
    assert len({int(d) for row in wanted.depth for d in row}) > 1
    written = kept(tmp_path, (requests(4), PARAMS), **given)
    check(written, wanted, ["tokens", "depth", "log_probability"])


@pytest.mark.slow
def test_sampling_and_stop_tokens(tmp_path):
    """Keys, rules and stop tokens are arguments: the file is exported with others."""
    key, rule = jax.random.key(3), Sampling(1.5, top_k=20, repetition_penalty=1.2)
    wanted = generate(MODEL, PARAMS, PROMPTS, LIMITS, sampling=rule, key=key)
    stop = int(wanted.tokens[1][4])
    wanted = generate(MODEL, PARAMS, PROMPTS, LIMITS, sampling=rule, key=key, stop=stop)
    assert "stop" in wanted.reason
    keys = [jax.random.key_data(jax.random.fold_in(key, k)) for k in range(4)]
    full = lambda value: jnp.full(4, value)
    rules = {
        "temperature": full(1.5),
        "top_k": full(20),
        "top_p": full(1.0),
        "min_p": full(0.0),
        "repetition_penalty": full(1.2),
    }
    asked = requests(4, keys=jnp.stack(keys), **rules)
    asked["stops"][:, 0] = stop
    example = Sampling(0.7, top_p=0.5, repetition_penalty=2.0)
    check(kept(tmp_path, (asked, PARAMS), sampling=example), wanted)


WRONG = {
    "`prompt`": dict(prompt=0),
    "`tokens`": dict(tokens=0),
    "`slots`": dict(slots=0),
    "context of 64, got 12 and 53": dict(tokens=53),
    "draft.exit": dict(draft=EarlyExit(3)),
    "`exits` must be None": dict(
        draft=EarlyExit(1), exits=Exits((1,), dx.criteria.margin_above(0.5))
    ),
    "top_p": dict(sampling=Sampling(top_p=0.0)),
    "`platforms`": dict(platforms=("gpu",)),
}


@pytest.mark.refuses
@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        export(MODEL, PARAMS, tmp_path / "text", **SIZES | WRONG[message])
    assert list(tmp_path.iterdir()) == []
