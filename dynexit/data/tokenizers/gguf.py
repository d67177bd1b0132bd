"""The tokenizer inside a GGUF file."""

import os

from dynexit.data.tokenizers.subwords import Subwords, byte_level, library
from dynexit.models.language.gguf import GgufFile

WORDS = ("gpt-2", "smollm")
"""Ways of splitting text into words that are known; smollm splits numbers into digits."""
_CONTROL, _OWN = 3, 4


def from_gguf(path: str | os.PathLike[str]) -> Subwords:
    """Reads the byte-level byte pair encoding in a GGUF file.

    Args:
      path: of the file that `dx.models.language.from_gguf` reads.

    Returns:
      A tokenizer; generation stops at the file's end of a text.

    Raises:
      ImportError: the package `gguf` or `tokenizers` is missing.
      ValueError: a damaged file, or another kind of tokenizer; the file is named.
    """
    tokenizers, file = library(), GgufFile(path)
    entry = lambda name, *default: file.value(f"tokenizer.ggml.{name}", *default)
    if (kind := entry("model")) != "gpt2":
        raise ValueError(f"{file.path}: 'tokenizer.ggml.model' must be gpt2, got {kind!r}")
    if (words := entry("pre", "gpt-2")) not in WORDS:
        raise ValueError(
            f"{file.path}: 'tokenizer.ggml.pre' must be one of {', '.join(WORDS)}, got {words!r}"
        )
    names: list[str] = entry("tokens")
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in entry("merges"))]
    inner = byte_level(tokenizers, {name: i for i, name in enumerate(names)}, merges)
    if words == "smollm":
        parts = [tokenizers.pre_tokenizers.Digits(individual_digits=True), inner.pre_tokenizer]
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    kinds: list[int] = entry("token_type", [1] * len(names))
    of_kind = lambda wanted: [n for n, k in zip(names, kinds, strict=True) if k == wanted]
    inner.add_special_tokens(of_kind(_CONTROL))
    inner.add_tokens(of_kind(_OWN))
    stop = entry("eos_token_id", None)
    return Subwords(inner, () if stop is None else (stop,))
