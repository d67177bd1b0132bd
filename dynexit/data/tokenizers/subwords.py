"""Tokenizers of the library `tokenizers`: from a folder, or trained on texts."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dynexit.core.files import local, replacing
from dynexit.data.tokenizers.tokenizer import refuse_unfit
from dynexit.models.hf_config import CONFIG, existing, read_json

FILE, END = "tokenizer.json", "<end>"
GENERATION = "generation_config.json"
_STOP_FILES = (GENERATION, CONFIG)


class Subwords:
    """A tokenizer of the library `tokenizers`; see `dx.data.tokenizers.Tokenizer`.

    Args:
      inner: `tokenizers.Tokenizer`.
      stop: ids at which generation stops.

    Raises:
      ValueError: a stop id that it does not have.
    """

    def __init__(self, inner: Any, stop: Iterable[int] = ()) -> None:
        self.inner = inner
        self.vocabulary: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        self.stop = tuple(int(token) for token in stop)
        added = inner.get_added_tokens_decoder()
        self.special: dict[str, int] = {a.content: i for i, a in added.items() if a.special}
        for token in self.stop:
            if not 0 <= token < self.vocabulary:
                raise ValueError(f"`stop` must lie in 0..{self.vocabulary - 1}, got {token}")

    def encode(self, text: str) -> list[int]:
        """The ids; the names of special tokens in the text become those tokens."""
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text, without special tokens."""
        return self.inner.decode([int(token) for token in tokens], skip_special_tokens=True)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `tokenizer.json` into a folder, for `from_folder` and transformers."""
        path = local(folder, "folder")
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / FILE) as draft:
            draft.write_text(self.inner.to_str(pretty=True), encoding="utf-8")
        return path / FILE


def from_folder(folder: str | os.PathLike[str]) -> Subwords:
    """Reads `tokenizer.json` of a folder of transformers.

    Generation stops at the `eos_token_id` of `generation_config.json`, or else of `config.json`.

    Args:
      folder: with the file; that of a language model too.

    Returns:
      A tokenizer.

    Raises:
      ImportError: the package `tokenizers` is missing.
      ValueError: no such file, a damaged one, or more tokens than the `vocab_size` of the
        `config.json` beside it.
    """
    path, tokenizers = existing(folder), library()
    if not (path / FILE).is_file():
        raise ValueError(
            f"{path} holds no {FILE}; transformers writes one with "
            "`AutoTokenizer.from_pretrained(folder).save_pretrained(new_folder)`"
        )
    try:
        inner = tokenizers.Tokenizer.from_file(str(path / FILE))
    except Exception as error:  # the library raises no narrower type
        raise ValueError(f"{path / FILE} cannot be read: {error}") from error
    configs = {n: read_json(path / n) if (path / n).is_file() else {} for n in _STOP_FILES}
    stops = [configs[name].get("eos_token_id") for name in _STOP_FILES]
    stop: Any = next((s for s in stops if s is not None), ())
    found = Subwords(inner, (stop,) if isinstance(stop, int) else stop)
    if "vocab_size" in configs[CONFIG]:
        refuse_unfit(found, configs[CONFIG]["vocab_size"])
    return found


def train_bpe(texts: Iterable[str], vocabulary: int) -> Subwords:
    """Trains a byte-level byte pair encoding; any text can be encoded.

    Args:
      texts: to count pairs in.
      vocabulary: tokens at most, 257 or more: one ends a text, 256 are bytes.

    Returns:
      A tokenizer whose token 0, `<end>`, ends a text.

    Raises:
      ImportError: the package `tokenizers` is missing.
      ValueError: `vocabulary` is below 257.

    Source: Sennrich et al. 2016, arXiv 1508.07909, on bytes as in GPT-2.
    """
    if vocabulary < 257:
        raise ValueError(f"`vocabulary` must be at least 257, got {vocabulary}")
    tokenizers = library()
    return Subwords(trained_pairs(tokenizers, texts, vocabulary, [END]), (0,))


def trained_pairs(
    tokenizers: Any, texts: Iterable[str], vocabulary: int, special: Sequence[str] = ()
) -> Any:
    """A tokenizer of the library whose byte pairs are merged by their frequency in the texts."""
    inner = byte_level(tokenizers, {}, [])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner


def with_end(inner: Any, end: int) -> Subwords:
    """A tokenizer whose id `end`, which may lie beyond the ids of `inner`, ends a text."""
    content = json.loads(inner.to_str())
    known: dict[str, int] = content["model"]["vocab"]
    if end in inner.get_vocab(with_added_tokens=True).values():
        return Subwords(inner, (end,))
    name = END
    while name in known:
        name = f"<{name}>"
    known[name] = end
    found = library().Tokenizer.from_str(json.dumps(content))
    found.add_special_tokens([name])
    return Subwords(found, (end,))


def byte_level(tokenizers: Any, tokens: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """A tokenizer of the library that encodes the words of GPT-2 as byte pairs."""
    model = tokenizers.models.BPE(tokens, merges) if tokens else tokenizers.models.BPE()
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return inner


def library() -> Any:
    """The package `tokenizers` with its parts, or an `ImportError` that names the cure."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "this tokenizer needs the package tokenizers: pip install 'dynexit[language]'"
        ) from error
    return tokenizers
