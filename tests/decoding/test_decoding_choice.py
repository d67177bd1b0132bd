"""The measured choice of drafts, exits and slots."""

import io
import re

import jax
import numpy as np
import pytest
from tiny_language import tiny_language

import dynexit as dx
from dynexit.decoding import EarlyExit, Exits, Measured, PromptLookup, Sampling, generate, tune
from dynexit.decoding.program import run_rounds
from dynexit.decoding.tuning import Choice, chosen, default_candidates

LANGUAGE = tiny_language()
MODEL, PARAMS = LANGUAGE.model, LANGUAGE.params
PROMPTS = [LANGUAGE.encode(text) for text in ("def f(x):", "import", "x = 1\ny = 2")]
LOSSY = Exits((1,), dx.criteria.margin_above(0.1))


def measured(speed, draft=None, exits=None, slots=2):
    return Measured(draft, exits, slots, speed, None if draft is None else 0.5, 1.0, 2)


PLAIN = measured(100.0), measured(90.0, slots=1)


@pytest.mark.parametrize(
    "others, lossy, wanted",
    [
        ([], False, PLAIN[0]),
        ([measured(104.0, EarlyExit(1))], False, PLAIN[0]),
        ([measured(106.0, EarlyExit(1))], False, measured(106.0, EarlyExit(1))),
        ([measured(300.0, None, LOSSY)], False, PLAIN[0]),
        ([measured(300.0, None, LOSSY)], True, measured(300.0, None, LOSSY)),
        ([measured(120.0, EarlyExit(1), slots=1)], True, measured(120.0, EarlyExit(1), slots=1)),
    ],
)
def test_plain_is_chosen_unless_another_is_faster_by_the_margin(others, lossy, wanted):
    assert chosen([*PLAIN, *others], 0.05, lossy) == wanted


def test_a_choice_is_a_table_and_a_line():
    from rich.console import Console

    draft = measured(150.0, EarlyExit(1, 2, among=[1, 2, 3]))
    choice = Choice(draft, (*PLAIN, draft, measured(160.0, None, LOSSY)), 3)
    console = Console(file=io.StringIO(), width=120)
    console.print(choice)
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if "EarlyExit(1, 2, among 3)" in line)
    assert row.split()[4:] == "2 150.0 1.50 0.50 1.00 yes 2/3".split()
    assert any("Exits((1,), propagate)" in line and " no " in line for line in lines)
    assert str(choice) == (
        "EarlyExit(1, 2, among 3), slots 2, 150.0 tokens/s, 1.50 times plain, "
        "50% of drafts accepted"
    )
    assert str(Choice(PLAIN[0], (*PLAIN, draft), 3)) == (
        "plain, slots 2, 100.0 tokens/s; next EarlyExit(1, 2, among 3), slots 2, 150.0"
    )


def test_candidates_write_the_same_text_and_their_programs_serve_generate():
    given = dict(stop=[256], chunk=16)
    choice = tune(
        MODEL, PARAMS, PROMPTS, 6, candidates=[PromptLookup(2)], tokens=4, repeats=1, **given
    )
    assert [m.name for m in choice.measured] == ["plain", "PromptLookup(2, 3)"]
    assert all(m.tokens_per_second > 0 and m.equal == 3 for m in choice.measured)
    plain, copied = choice.measured
    assert plain.acceptance is None
    assert copied.acceptance is None or 0 <= copied.acceptance <= 1  # rounds may have no drafts
    assert copied.rounds_per_token <= plain.rounds_per_token
    before = run_rounds._cache_size()
    found = generate(MODEL, PARAMS, PROMPTS, 6, draft=choice.draft, slots=choice.slots, **given)
    assert run_rounds._cache_size() == before and len(found.tokens) == 3


@pytest.mark.slow
def test_lossy_candidates_are_reported_and_chosen_only_if_asked():
    candidates = [LOSSY, PromptLookup(3), EarlyExit(1)]
    given = dict(candidates=candidates, slots=(1, 2), tokens=24, repeats=1, margin=0.0)
    choice = tune(MODEL, PARAMS, PROMPTS, 24, **given)
    assert len(choice.measured) == 8 and choice.exits is None
    exits = [m for m in choice.measured if m.exits is not None]
    assert [m.lossless for m in exits] == [False, False] and exits[0].equal < 3
    assert all(m.equal == 3 for m in choice.measured if m.lossless)
    sampled = tune(
        MODEL, PARAMS, PROMPTS, 4, candidates=[], sampling=Sampling(), key=jax.random.key(0),
        repeats=1,
    )  # fmt: skip
    assert [m.equal for m in sampled.measured] == [None]


def test_default_candidates_fit_every_depth():
    for depth, exits in ((1, []), (2, [1]), (3, [1]), (4, [1, 2]), (30, [7, 15])):
        settings = dx.models.CausalLM(width=8, depth=depth, heads=2)
        first, *early, last = default_candidates(settings.build(dx.Tokens(20), 20).decoder)
        assert first is None and [d.exit for d in early] == exits and last == PromptLookup()


WRONG = {
    "`candidates[1]` must be": (dict(candidates=[None, 2]), TypeError),
    "`tokens`": (dict(tokens=0), ValueError),
    "`repeats`": (dict(repeats=0), ValueError),
    "`margin` must be at least 0": (dict(margin=-0.1), ValueError),
    "`slots`": (dict(slots=[0]), ValueError),
    "`sampling` must be one or one for each of the 3": (dict(sampling=[Sampling()]), ValueError),
}


@pytest.mark.refuses
@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_of_tune_are_named(message):
    arguments, error = WRONG[message]
    with pytest.raises(error, match=re.escape(message)):
        tune(MODEL, PARAMS, np.ones((3, 2), int), 2, **arguments)
