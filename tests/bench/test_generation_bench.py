"""The benchmark of generation: a queue beside static batches, and the lines that it prints."""

import jax
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
