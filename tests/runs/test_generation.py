"""Text from a prompt: the same as `generate`, its counts, its colours, its page, and the command."""

import importlib
import io
import re
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from tiny_language import DEPTH, tiny_language

import dynexit as dx
from dynexit.cli.main import main
from dynexit.data.tokenizers.characters import Characters
from dynexit.decoding import Sampling, Work
from dynexit.evaluation.reports.depth_html import TokenView, depth_page
from dynexit.runs.experiment_file import SettingsError, load
from dynexit.runs.generation.options import draft_of, exits_of
from dynexit.runs.generation.terminal import Printer
from dynexit.runs.generation.writing import Piece, Summary, Writing, measured_choice
from dynexit.runs.language import keep_tokenizer, load_language
from dynexit.runs.run_folder import claim
from dynexit.training.checkpointing.saver import Saver

LANGUAGE = tiny_language()
PROMPT = "def f(x):"


def test_text_and_counts_are_those_of_generate():
    exits = exits_of((1,), 0.08)
    writing = Writing(LANGUAGE, PROMPT, max_tokens=12, exits=exits)
    pieces = list(writing)
    found = writing.summary
    ids = [LANGUAGE.tokenizer.encode(PROMPT)]
    given = dict(exits=exits, stop=[256], log_probabilities=True)
    wanted = dx.decoding.generate(LANGUAGE.model, LANGUAGE.params, ids, 12, **given)
    assert [p.token for p in pieces] == wanted.tokens[0].tolist()
    assert [p.depth for p in pieces] == wanted.depth[0].tolist() and len(found.depths) == 2
    np.testing.assert_allclose(
        [p.log_probability for p in pieces], wanted.log_probability[0], atol=1e-5
    )
    text = LANGUAGE.tokenizer.decode(wanted.tokens[0])
    assert "".join(p.text for p in pieces) == text
    assert (found.tokens, found.reason) == (len(pieces), wanted.reason[0])
    assert found.rounds == wanted.rounds[0] and found.depths[1] == (wanted.depth[0] == 1).sum()
    assert found.mean_depth == pytest.approx(wanted.depth[0].mean()) and found.seconds > 0
    assert list(writing) == []  # it has ended


def test_tokens_end_where_the_context_ends():
    writing = Writing(LANGUAGE, "x" * 60)
    assert sum(1 for _ in writing) == writing.summary.tokens <= 4
    with pytest.raises(ValueError, match="context of 64"):
        Writing(LANGUAGE, "x" * 60, max_tokens=5)
    with pytest.raises(ValueError, match="`prompt` must have at least one token"):
        Writing(LANGUAGE, "")


def test_options_of_drafts_and_exits():
    assert draft_of("none") is None and exits_of(()) is None
    assert draft_of("prompt_lookup", None, 5).tokens == 5
    for wrong in (("early_exit",), ("none", 2), ("none", None, 2), ("other",)):
        with pytest.raises(SettingsError, match="--draft"):
            draft_of(*wrong)
    with pytest.raises(SettingsError, match="--threshold goes with"):
        exits_of((), 0.5)
    with pytest.raises(SettingsError, match="--park goes with"):
        exits_of((), None, 2)
    with pytest.raises(SettingsError, match="--park must be at least 0, got -1"):
        exits_of((1,), None, -1)
    assert exits_of((1,), None, 2).park == 2
    with pytest.raises(SettingsError, match=r"0\.\.1, got 2"):
        exits_of((1,), 2.0)


SUMMARY = Summary(3, "length", 1.0, 0.5, {1: 1, 2: 2}, 2, 2, 1)


def printed(terminal, colour=True):
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, color_system="truecolor", width=200)
    printer = Printer(DEPTH, colour, console)
    printer.prompt("in ")
    for text, depth in (("a", 1), ("", 2), ("\x1b[2Jé\n", 2)):
        printer.piece(Piece(text, 0, depth, 0.0))
    printer.summary(SUMMARY, drafts=True)
    return file.getvalue()


def test_a_terminal_has_colours_and_no_control_characters(capsys):
    text = printed(terminal=True)
    codes = re.findall(r"\x1b\[([\d;]*)m", text)
    assert len({c for c in codes if c.startswith("38;2;")}) == 2
    assert re.sub(r"\x1b\[[\d;]*m", "", text) == "in a?[2Jé\n\n"
    words = capsys.readouterr().err
    assert "depth 1: 1   depth 2: 2" in words and "6.0 tokens/s" in words
    assert "mean depth 1.67 of 2, 0.50 accepted drafts a round (1 of 2)" in words


def test_what_exits_took_is_printed(capsys):
    work = Work(4, 8, 6, 6, 8, 0, readout_cost=0.5, fill_cost=0.25, among_cost=0.0)
    for given in (None, work):
        Printer(DEPTH, False).summary(SUMMARY._replace(work=given), drafts=False)
    without, words = capsys.readouterr().err.splitlines()[1::2]
    assert without.endswith("mean depth 1.67 of 2")
    assert words == (
        f"{without}, 1.50 exits read a token (0.25 blocks), "
        "keys and values of skipped blocks 0.50 blocks a token"
    )


def test_plain_text_elsewhere(capsys):
    assert re.findall(r"\x1b\[[\d;]*m", printed(terminal=True, colour=False)) == []
    assert printed(terminal=False) == "a\x1b[2Jé\n\n"  # what a file gets is the text itself


def test_the_page_is_escaped():
    tokens = [
        TokenView('<script>alert("&")</script>', 1, 1, -0.5),
        TokenView("", 2, 2, -1.25),
        TokenView("\x00\x1b é\n", 3, 2),
    ]
    page = depth_page("<img src=x>", tokens, 2, title="</title><b>")
    assert "<script" not in page and "<img" not in page and "</title><b>" not in page
    assert "&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;" in page
    assert 'title="token 1, depth 1 of 2, ln p -0.500"' in page
    assert 'class="token box"' in page and "\ufffd\ufffd é\n" in page
    assert "depth 1</span> 1 token, 33.3%" in page and "depth 2</span> 2 tokens, 66.7%" in page
    assert "3 tokens, 1.67 of 2 blocks" in page
    from html.parser import HTMLParser

    opened = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: opened.append(tag)
    parser.feed(page)
    assert set(opened) == {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "p",
        "ul",
        "li",
        "span",
    }
    colours = re.findall(r'class="token[^"]*" style="background:(rgb[^"]*)"', page)
    assert colours[0] != colours[1] == colours[2]


def test_a_page_without_tokens():
    assert "0 tokens" in depth_page("a", [], 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of transformers with a tokenizer."""
    pytest.importorskip("tokenizers")
    place = tmp_path_factory.mktemp("model") / "pairs"
    words = dx.data.tokenizers.train_bpe(["def naïve(x): return x"] * 3, 270)
    settings = dx.models.CausalLM(width=16, depth=DEPTH, heads=2, context=64)
    model = settings.build(dx.Tokens(272), 272)
    dx.models.language.to_hf(place, settings, model.init(jax.random.key(0)))
    words.save(place)
    return place


def test_a_folder_of_transformers_is_read(folder):
    language = load_language(folder)
    assert language.name == "pairs" and language.model.decoder.vocabulary == 272
    assert language.tokenizer.decode(language.encode("def x")) == "def x"


def of_run(place, monkeypatch, data, classes=()):
    """`load_language` of a run whose checkpoint is not read."""
    (place / "settings.json").write_text("{}")
    trained = importlib.import_module("dynexit.runs.trained")
    settings = types.SimpleNamespace(data=data)
    run = trained.TrainedModel(LANGUAGE.model, LANGUAGE.params, settings, classes)
    monkeypatch.setattr(trained, "trained_model", lambda *given: run)
    return load_language(place, dtype=jax.numpy.bfloat16)


def test_the_tokenizer_of_a_run(tmp_path, monkeypatch, folder):
    (tmp_path / "documents").mkdir()
    for k in range(4):
        (tmp_path / "documents" / f"{k}.txt").write_text(f"naïve text number {k}")
    data = dx.data.TextDocuments(tmp_path / "documents", vocabulary=257, stored=tmp_path / "data")
    language = of_run(tmp_path, monkeypatch, data)
    words = language.tokenizer
    assert words.decode([*words.encode("é"), 256]) == "é" and words.stop == (256,)
    assert {a.dtype.name for a in jax.tree.leaves(language.params)} == {"bfloat16"}
    words = of_run(tmp_path, monkeypatch, None, ("a", "b")).tokenizer
    assert words.encode("ba") == [1, 0]
    with pytest.raises(SettingsError, match="has no tokenizer"):
        of_run(tmp_path, monkeypatch, None, ("one", "two"))
    shutil.copy(folder / "tokenizer.json", tmp_path)
    with pytest.raises(SettingsError, match="270 tokens, and the model only 257"):
        of_run(tmp_path, monkeypatch, data)


EXPERIMENT = '''"""Text."""
import dataclasses
import pathlib
import dynexit as dx

@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """All."""
    model: dx.models.CausalLM = dx.models.CausalLM(width=16, depth=2, heads=2)
    method: dx.methods.LayerSkip = dx.methods.LayerSkip()
    data: dx.data.TextDocuments = dx.data.TextDocuments(
        pathlib.Path("FOLDER/documents"), vocabulary=270, length=8, stored=pathlib.Path("FOLDER")
    )

SMOKE = Settings()
'''


def test_a_run_folder_needs_no_data(tmp_path):
    pytest.importorskip("tokenizers")
    texts = tmp_path / "documents"
    texts.mkdir()
    for k in range(4):
        (texts / f"{k}.txt").write_text(f"naïve text number {k}")
    (tmp_path / "text.py").write_text(EXPERIMENT.replace("FOLDER", str(tmp_path)))
    file = load(tmp_path / "text.py")
    run = claim(tmp_path / "run", file, file.settings, ["train", "text.py"], print)
    keep_tokenizer(run.folder, run.settings.data)
    model = run.settings.model.build(run.settings.data.inputs, 270)
    with Saver(run.folder, 1, seed=0) as saver:
        saver.save(1, {"params": model.init(jax.random.key(0))})
    codec = run.settings.data.corpus().codec
    shutil.rmtree(texts)
    for stored in tmp_path.glob("dynexit_documents_*"):
        shutil.rmtree(stored)
    words = load_language(run.folder).tokenizer
    assert words.stop == (codec.end,) == (269,) and words.special == {"<end>": 269}
    ids = codec.encode("naïve 漢").tolist()
    assert words.encode("naïve 漢") == ids and words.decode([*ids, 269]) == "naïve 漢"
    (run.folder / "tokenizer.json").unlink()  # a run of an earlier version
    with pytest.raises(SettingsError, match="folder must be a folder"):
        load_language(run.folder)


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    page = tmp_path / "depth.html"
    monkeypatch.setattr(sys, "stdin", io.StringIO("--draft: "))
    words = ["generate", str(folder), "--prompt", "-", "--max-tokens", "5", "--html", str(page)]
    given = ["--seed", "3", "--temperature", "1", "--mesh.model", "2"]
    assert main([*words, *given]) == 0
    out, err = capsys.readouterr()
    given = dict(seed=3, sampling=Sampling(temperature=1.0))
    pieces = list(Writing(load_language(folder), "--draft: ", max_tokens=5, **given))
    assert out == "".join(p.text for p in pieces) + "\n"
    assert f"{len(pieces)} tokens (" in err and "accepted" not in err
    assert page.read_text().count('class="token') == len(pieces)


def test_measured_drafts_are_used_and_named(folder, capsys, monkeypatch):
    Speed, given = dx.decoding.Measured, {}
    fast = Speed(dx.decoding.PromptLookup(2), None, 1, 30.0, 0.5, 0.6, 1)
    choice = dx.decoding.Choice(fast, (Speed(None, None, 1, 20.0, None, 1.0, 1), fast), 1)

    def measured(model, params, prompts, limit, **more):
        given.update(more, limit=limit, prompts=prompts)
        return choice

    monkeypatch.setattr("dynexit.runs.generation.writing.tune", measured)
    words = ["--prompt", "def", "--max-tokens", "3", "--draft", "auto"]
    assert main(["generate", str(folder), *words]) == 0
    line, *_, last = capsys.readouterr().err.splitlines()
    assert line == f"--draft auto: {choice}" and "PromptLookup(2, 3)" in line
    assert "accepted drafts a round" in last
    assert given["limit"] == 3 and given["slots"] == 1 and given["log_probabilities"]


@pytest.mark.slow
def test_drafts_are_measured_with_the_program_that_writes(capsys):
    from dynexit.decoding.program import run_rounds

    choice = measured_choice(LANGUAGE, PROMPT, max_tokens=8)
    assert [m.name for m in choice.measured] == [
        "plain",
        "EarlyExit(1, 4)",
        "PromptLookup(8, 3)",
    ]
    before = run_rounds._cache_size()
    list(Writing(LANGUAGE, PROMPT, max_tokens=8, draft=choice.draft))
    assert run_rounds._cache_size() == before


REFUSED = {
    "--prompt must be given": [],
    "--prompt takes a text": ["--prompt"],
    "temperature must be": ["--prompt", "-x", "--temperature", "-1"],
    "go together": ["--prompt=--x", "--draft", "early_exit"],
    "do not go together": ["--prompt", "a", "--draft", "prompt_lookup", "--exits", "1"],
    "do not go together: drafts": ["--prompt", "a", "--draft", "auto", "--exits", "1"],
    "--draft-tokens is for": ["--prompt", "a", "--draft", "auto", "--draft-tokens", "2"],
    "are 8 devices, and there are 4": ["--prompt", "a", "--mesh.data", "4", "--mesh.model", "2"],
    "mesh.model must be at least 1": ["--prompt", "a", "--mesh.model", "0"],
    "must divide the 4 devices": ["--prompt", "a", "--mesh.data", "None", "--mesh.model", "3"],
    "must be a run folder": ["--prompt", "a"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals(words, tmp_path, capsys):
    assert main(["generate", str(tmp_path), *REFUSED[words]]) == 2
    assert words in capsys.readouterr().err


def test_characters():
    words = dx.data.PythonSource().text_tokenizer()
    assert words.vocabulary == 128 and words.decode(words.encode("a é")) == "a ?"
    with pytest.raises(ValueError, match="'c'"):
        Characters(("a", "b")).encode("abc")
