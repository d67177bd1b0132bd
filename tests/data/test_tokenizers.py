"""Tokenizers: round trips, text in pieces, stop tokens, and vocabularies that do not fit."""

import json

import numpy as np
import pytest

import dynexit as dx

T = dx.data.tokenizers
TEXT = "def naïve(x): return '日本語 🎉' * 12\n\tpass"


def trained(size=300):
    pytest.importorskip("tokenizers")
    return T.train_bpe([TEXT * 20, "the other, the same, then there"] * 3, size)


def made(kind):
    return T.Bytes() if kind == "bytes" else trained()


@pytest.mark.parametrize("kind", ["bytes", "pairs"])
def test_text_is_encoded_and_decoded(kind):
    tokenizer = made(kind)
    tokens = tokenizer.encode(TEXT)
    assert tokenizer.decode(tokens) == TEXT and tokenizer.decode(np.asarray(tokens)) == TEXT
    assert 0 <= min(tokens) and max(tokens) < tokenizer.vocabulary
    assert tokenizer.decode([*tokens, *tokenizer.stop]) == TEXT  # special tokens are no text
    assert tuple(tokenizer.special.values()) == tokenizer.stop and tokenizer.encode("") == []


def test_pairs_are_shorter_than_bytes():
    tokenizer = trained()
    assert tokenizer.vocabulary == 300
    assert len(tokenizer.encode(TEXT)) < 0.7 * len(T.Bytes().encode(TEXT))


@pytest.mark.parametrize("kind", ["bytes", "pairs"])
@pytest.mark.parametrize("cut", [None, -1])
def test_pieces_of_a_stream_are_the_text(kind, cut):
    """No piece holds part of a character; what is cut off is U+FFFD at the end alone."""
    tokenizer, text = made(kind), TEXT + " 🎉"
    tokens = tokenizer.encode(text)[:cut]
    stream = T.TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokens]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == tokenizer.decode(tokens)
    assert "".join(pieces) == text[: len("".join(pieces))]
    assert len("".join(pieces)) >= (len(text) if cut is None else len(text) - 2)
    assert stream.finish() == ""


def test_wrong_bytes_are_replaced():
    stream = T.TextStream(T.Bytes())
    assert [stream.push(byte) for byte in (0xE6, 65)] == ["", "\ufffdA"]


def write(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_gives_the_tokenizer_and_its_stop_tokens(tmp_path):
    tokenizer = trained()
    tokenizer.save(tmp_path)
    assert T.from_folder(tmp_path).stop == ()
    found = T.from_folder(write(tmp_path, vocab_size=320, eos_token_id=0))
    assert found.stop == (0,) and found.encode(TEXT) == tokenizer.encode(TEXT)
    assert found.special == {"<end>": 0} and found.decode(found.encode(TEXT)) == TEXT
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    assert T.from_folder(tmp_path).stop == (0, 7)


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no tokenizer.json"):
        T.from_folder(tmp_path)
    with pytest.raises(ValueError, match="`vocabulary` must be at least 257, got 256"):
        T.train_bpe([], 256)
    trained().save(tmp_path)
    with pytest.raises(ValueError, match="has 300 tokens, and the model only 299"):
        T.from_folder(write(tmp_path, vocab_size=299))
    with pytest.raises(ValueError, match=r"`stop` must lie in 0..299, got 300"):
        T.from_folder(write(tmp_path, eos_token_id=300))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
        T.from_folder(tmp_path)


def test_bytes_need_no_library():
    import subprocess
    import sys

    program = """
import sys, dynexit as dx
assert dx.data.tokenizers.Bytes().encode("a") == [97]
assert not {"tokenizers", "jax", "gguf"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
