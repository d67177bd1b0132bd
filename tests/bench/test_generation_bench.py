"""The benchmark of generation: a queue beside static batches, and the lines that it prints."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.bench.generation import geometric_lengths, timed_queue
from dynexit.runs.generation.benchmark import main


def test_a_queue_needs_fewer_rounds_and_writes_the_same_texts():
    model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(40), 40)
    params = model.init(jax.random.key(0))
    prompts = np.random.default_rng(0).integers(0, 40, (6, 3))
    drafts = {"plain": None, "lookup": dx.decoding.PromptLookup(2)}
    given = model, params, prompts, [2, 9, 3, 9, 2, 2], 2, drafts, 1
    static, queue, *drafted = timed_queue(*given)
    assert [q.draft for q in drafted] == ["lookup", "lookup"]
    assert all(q.equal == 6 for q in (static, queue, *drafted))
    assert static.rounds == 9 + 9 + 2 and queue.rounds < static.rounds
    assert static.seconds > 0 and queue.seconds > 0


def test_lengths_have_their_mean():
    lengths = geometric_lengths(4000, 24.0)
    assert 22 < np.mean(lengths) < 26 and min(lengths) >= 1 and max(lengths) <= 192
    assert geometric_lengths(8, 24.0) == lengths[:8]


@pytest.mark.slow
def test_the_command_reads_a_folder_and_prints_a_line_for_each(tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    words = dx.data.tokenizers.train_bpe(["def f(x): return x"] * 3, 270)
    settings = dx.models.CausalLM(width=16, depth=2, heads=2)
    model = settings.build(dx.Tokens(272), 272)
    dx.models.language.to_hf(tmp_path / "model", settings, model.init(jax.random.key(0)))
    words.save(tmp_path / "model")
    given = ["--model", str(tmp_path / "model"), "--prompt", "8", "--repeats", "1"]
    main([*given, "--batches", "2", "--tokens", "5", "--lookup", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert "transformers" in lines[0] and "prompt lookup, 2 drafts" in lines[-1]
    assert all(line.endswith("2 of 2 texts equal") for line in lines)
    main([*given, "--queue", "5", "--slots", "2", "--mean", "4"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("5 prompts, ") and len(lines) == 2
    assert all(line.endswith("5 of 5 texts equal") for line in lines)
    main([*given, "--queue", "3", "--slots", "2", "--mean", "4", "--equal"])
    assert capsys.readouterr().out.startswith("3 prompts, 12 tokens of 4 to 4 each")


@pytest.mark.slow
def test_every_draft_is_right_where_the_later_blocks_add_nothing(capsys, monkeypatch):
    always = lambda plan, given, carry, run: (jnp.array([1e9, 1.0]), carry)
    monkeypatch.setattr("dynexit.decoding.session.measured_costs", always)
    given = "--right --exit 2 --width 64 --queue 2 --slots 1 --mean 12 --equal --repeats 1".split()
    main(given)
    _, plain, _, drafted, _ = capsys.readouterr().out.splitlines()
    rounds = lambda line: int(re.search(r"(\d+) rounds", line)[1])
    assert rounds(plain) == 24 and rounds(drafted) == 2 * -(-12 // 5)
    assert drafted.endswith("2 of 2 texts equal")
    with pytest.raises(SystemExit):
        main(["--right"])
