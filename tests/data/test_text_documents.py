"""Text documents: splits by file, tokens stored once, and packed windows."""

import dataclasses

import numpy as np
import pytest

import dynexit as dx
from dynexit.data import store
from dynexit.data.source import part
from dynexit.data.text.codec import Codec, trained_codec
from dynexit.data.text.documents import read_documents
from dynexit.data.text.packing import packed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts")
    (place / "inner").mkdir()
    for k in range(20):
        text = f"word{k} " * (5 + k) + "ü\n"
        (place / ("inner" if k % 2 else ".") / f"{k:02}.txt").write_text(text, encoding="utf-8")
    (place / "copy.txt").write_text((place / "00.txt").read_text(encoding="utf-8"), "utf-8")
    (place / "empty.txt").write_text(" \n")
    (place / "picture.png").write_bytes(b"\xff")
    (place / ".hidden").mkdir()
    (place / ".hidden" / "h.txt").write_text("hidden")
    return place


@pytest.fixture(scope="module")
def settings(folder, tmp_path_factory):
    stored = tmp_path_factory.mktemp("stored")
    return dx.data.TextDocuments(
        folder, vocabulary=300, length=16, examples=None, calibration=0.2, test=0.2, stored=stored
    )


def documents(folder, seed=0):
    return read_documents(folder, (".txt",), 0.2, 0.2, seed)


def test_every_text_is_in_one_split(folder):
    found = documents(folder)
    paths = {split: {d.path for d in members} for split, members in found.items()}
    assert [len(paths[s]) for s in ("train", "calibration", "test")] == [12, 4, 4]
    assert len(set.union(*paths.values())) == 20 and {".hidden/h.txt", "empty.txt"}.isdisjoint(
        set.union(*paths.values())
    )
    assert {"inner/01.txt", "02.txt"} <= set.union(*paths.values())
    texts = [d.text for members in found.values() for d in members]
    assert len(texts) == len(set(texts)), "a copy is left out"
    assert documents(folder) == found != documents(folder, seed=1)


@pytest.mark.parametrize("vocabulary", [257, 300])
def test_text_survives_the_tokens(vocabulary):
    pytest.importorskip("tokenizers")
    codec = trained_codec(["word word\n", "ü"], vocabulary)
    text = "  word\tnever seen: ü 漢 <|end|>\n"
    ids = codec.encode(text)
    assert codec.decode(np.append(ids, codec.end)) == text
    assert ids.dtype == np.int32 and ids.max() < codec.end == vocabulary - 1
    assert (len(ids) < len(text.encode())) == (vocabulary == 300)


def test_windows_hold_every_token_of_the_split_in_order(settings, folder):
    pytest.importorskip("tokenizers")
    found, data = settings.corpus(), settings.build()
    for source, (split, members) in zip(data[:3], documents(folder).items(), strict=True):
        assert source.split == split
        texts = [found.codec.decode(ids) for ids in found.splits[split]]
        assert texts == [d.text for d in members]
        stream = np.concatenate(found.splits[split])
        tokens = source.examples()["inputs"]["tokens"]
        np.testing.assert_array_equal(tokens.ravel(), stream[: tokens.size])
        assert source.size == len(tokens) == len(stream) // 16
        labels = source.examples()["labels"].ravel()
        ends = stream[: tokens.size] == found.codec.end
        np.testing.assert_array_equal(labels == -1, ends)
        np.testing.assert_array_equal(labels[:-1][~ends[:-1]], stream[1 : tokens.size][~ends[:-1]])


def test_a_model_brings_its_tokenizer(settings, folder, tmp_path):
    pytest.importorskip("tokenizers")
    words = dx.data.tokenizers.train_bpe([f"word{k}" for k in range(20)], 280)
    words.save(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 0, "vocab_size": 300}')
    asked = dataclasses.replace(settings, tokenizer_folder=tmp_path, stored=tmp_path / "stored")
    own, text = asked.corpus(), documents(folder)["test"][0].text
    ids = own.splits["test"][0].tolist()
    assert ids == [*words.encode(text), 0] and own.codec.end == 0
    assert own.codec.decode(ids) == text
    assert ids != settings.corpus().splits["test"][0].tolist()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="ends a text"):
        asked.corpus()


def test_segments_number_the_documents_of_a_window():
    ids = [np.arange(n, dtype=np.int32) for n in (3, 5, 2, 6)]
    source = packed("train", ids, 8)
    segments = source.examples()["inputs"]["segments"]
    assert segments.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]]
    assert source.examples()["labels"][1].tolist() == [1, -1, 1, 2, 3, 4, 5, -1]


def test_what_is_built_is_what_was_promised(settings):
    pytest.importorskip("tokenizers")
    data = settings.build()
    assert data.inputs == settings.inputs == dx.Tokens(300, 16)
    assert data.classes == settings.classes and len(data.classes) == 300
    for source in data[:3]:
        batch = source.batch(0, 0, 2)
        for leaf in (*batch["inputs"].values(), batch["labels"]):
            assert leaf.shape == (2, 16) and leaf.dtype == np.int32


def test_a_model_does_not_see_the_document_before():
    """The outputs of a document are those of the document alone."""
    import jax

    model = dx.models.CausalLM(width=8, depth=2, heads=2).build(dx.Tokens(20), 20)
    params = model.init(jax.random.key(0))
    first, second = np.array([1, 2, 19]), np.array([3, 4, 5, 6, 19])
    window = packed("train", [first, second], 8).examples()["inputs"]
    run = lambda inputs: dx.run_all(model.steps(params), model.embed(params, inputs))["hidden"]
    together, alone = run(window), run(second[None])
    np.testing.assert_allclose(together[:, :, 3:], alone, rtol=1e-5, atol=1e-6)


def test_batches_are_functions_of_seed_and_step(settings):
    pytest.importorskip("tokenizers")
    train = settings.build().train
    batch, again = train.batch(3, 5, 4), settings.build().train.batch(3, 5, 4)
    np.testing.assert_array_equal(batch["labels"], again["labels"])
    assert not np.array_equal(batch["labels"], train.batch(3, 6, 4)["labels"])
    assert not np.array_equal(batch["labels"], train.batch(4, 5, 4)["labels"])
    rows = part(train, 3, 5, 4, 1, 3)
    np.testing.assert_array_equal(rows["inputs"]["segments"], batch["inputs"]["segments"][1:3])
    epoch = train.batch(0, 0, train.size)["inputs"]["tokens"]
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, train.examples()["inputs"]["tokens"]))


def test_examples_are_spread_over_the_split(settings):
    pytest.importorskip("tokenizers")
    few = dataclasses.replace(settings, examples=3).build()
    every = settings.build().test.examples()["labels"]
    chosen = np.linspace(0, len(every) - 1, 3).astype(int)
    np.testing.assert_array_equal(few.test.examples()["labels"], every[chosen])
    assert few.test.size == 3 and few.train.size == settings.build().train.size


def test_documents_are_tokenised_once(settings, monkeypatch):
    pytest.importorskip("tokenizers")
    from dynexit.data.text import stored

    settings.build()
    stored._read.cache_clear()
    monkeypatch.setattr(stored, "_write", None)
    assert settings.build().train.size > 0
    (place,) = settings.stored.glob("dynexit_documents_*")
    names = {path.name for path in (place / store.VERSION).iterdir()}
    assert "tokenizer.json" in names and any("array_record" in name for name in names)


def test_damage_is_reported_with_a_cure(settings, tmp_path):
    damaged = dataclasses.replace(settings, vocabulary=257, stored=tmp_path)
    damaged.build()
    from dynexit.data.text import stored

    stored._read.cache_clear()
    (records,) = tmp_path.glob("*/*/*train.array_record*")
    content = bytearray(records.read_bytes())
    content[len(content) // 2] ^= 1
    records.write_bytes(content)
    with pytest.raises(store.DataDamaged, match="Remove that folder"):
        damaged.build()


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("length", 0),
        ("vocabulary", 256),
        ("examples", 0),
        ("calibration", 0.0),
        ("test", 1.0),
        ("split_seed", -1),
        ("folder", "/no/such/folder"),
    ],
)
def test_values_out_of_range_name_their_field(settings, field, value):
    with pytest.raises(ValueError, match=rf"`TextDocuments`: .*\b{field} "):
        dataclasses.replace(settings, **{field: value}).build()


def test_too_little_text_is_refused(tmp_path, settings):
    (tmp_path / "one.txt").write_text("text")
    few = dataclasses.replace(settings, folder=tmp_path)
    with pytest.raises(ValueError, match=r"`folder` .* must have 3 files or more"):
        few.build()
    for k in range(3):
        (tmp_path / f"{k}.txt").write_text(f"{k}")
    with pytest.raises(ValueError, match=r"`length` must be at most the .* tokens of the"):
        dataclasses.replace(few, vocabulary=257, stored=tmp_path / "data").build()


def test_bytes_need_no_library():
    assert Codec(257).encode("ü").tolist() == [195, 188]
