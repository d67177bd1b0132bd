"""Decoding beside transformers: the same weights, prompts and greedy text, in one run.

    python -m dynexit.bench.generation --batches 1 8                 # random weights, 8 x 512
    python -m dynexit.bench.generation --model FILE.gguf --lookup 6  # or a transformers folder

Prompts are pieces of Python's standard library. A figure is the time of a token after the prompt:
the least of several interleaved repeats, less that of one token.
"""

import argparse
import math
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynexit.core.data import Tokens
from dynexit.core.shapes import HostArray, Int
from dynexit.core.system import cores
from dynexit.data.tokenizers.bytes import Bytes
from dynexit.decoding.drafts import Draft, EarlyExit, PromptLookup
from dynexit.decoding.generate import generate
from dynexit.models.language.gguf import from_gguf
from dynexit.models.language.hf.folder import from_hf, to_hf
from dynexit.models.language.pretrained import Pretrained
from dynexit.models.language.settings import CausalLM

Write = Callable[[Int[HostArray, "B P"], int], list[Int[HostArray, "_"]]]


def main() -> None:
    """Prints a table: milliseconds of a token step, the ratio to transformers, equal tokens."""
    parser = argparse.ArgumentParser(description="Decoding beside transformers.")
    parser.add_argument("--model", default=None, help="a folder of transformers or a GGUF file")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=49, help="tokens to write")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--exit", type=int, default=0, help="blocks that draft")
    parser.add_argument("--drafts", type=int, default=4, help="drafts of these blocks in a round")
    parser.add_argument("--lookup", type=int, default=0, help="drafts of prompt lookup in a round")
    parser.add_argument("--no-peer", action="store_true", help="without transformers")
    options = parser.parse_args()
    model, encode = _opened(options.model)
    drafts: dict[str, Draft | None] = {"plain": None}
    if options.exit:
        name = f"{options.exit} blocks, {options.drafts} drafts"
        drafts[name] = EarlyExit(options.exit, options.drafts)
    if options.lookup:
        drafts[f"prompt lookup, {options.lookup} drafts"] = PromptLookup(options.lookup)
    weights = model.model.decoder.unstack(model.params)
    writers: dict[str, Write] = {
        name: lambda x, n, draft=draft: generate(model.model, weights, x, n, draft=draft).tokens
        for name, draft in drafts.items()
    }
    if not options.no_peer:
        writers = {"transformers": transformers_eager(model)} | writers
    text = _texts(encode, options.prompt, max(options.batches))
    for batch in options.batches:
        timed(writers, text[:batch], options.tokens, options.repeats)


def timed(
    writers: dict[str, Write], prompts: Int[HostArray, "B P"], tokens: int, repeats: int
) -> None:
    """Times every writer and prints a line for each; the first one is the reference."""
    least = {(name, n): math.inf for name in writers for n in (1, tokens)}
    found: dict[str, list[HostArray]] = {}
    for repeat in range(repeats + 1):  # the first one compiles
        for name, write in writers.items():
            for n in (1, tokens):
                start = time.perf_counter()
                found[name] = write(prompts, n)
                if repeat:
                    least[name, n] = min(least[name, n], time.perf_counter() - start)
    seconds = {name: (least[name, tokens] - least[name, 1]) / (tokens - 1) for name in writers}
    first = next(iter(writers))
    for name in writers:
        same = [np.array_equal(a, b) for a, b in zip(found[name], found[first], strict=True)]
        print(
            f"batch {len(prompts):3d}  {name:32s} {1e3 * seconds[name]:8.2f} ms a token step, "
            f"{seconds[first] / seconds[name]:5.2f} times {first}, "
            f"{sum(same)} of {len(same)} texts equal",
            flush=True,
        )


def transformers_eager(model: Pretrained) -> Write:
    """Greedy generation by transformers in float32, with as many threads as there are cores.

    Raises:
      ImportError: PyTorch or transformers is not installed.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("the peer needs PyTorch and transformers, or --no-peer") from error
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        path = to_hf(Path(folder) / "model", model.settings, model.params)
        load: Any = transformers.AutoModelForCausalLM
        peer = load.from_pretrained(path, dtype=torch.float32).eval()
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0

    def write(prompts: Int[HostArray, "B P"], tokens: int) -> list[Int[HostArray, "_"]]:
        given = torch.from_numpy(prompts.astype(np.int64))
        with torch.inference_mode():
            text = peer.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=tokens,
                do_sample=False,
            )
        return list(text[:, prompts.shape[1] :].numpy())

    return write


def _opened(model: str | None) -> tuple[Pretrained, Callable[[str], list[int]]]:
    if model is None:
        settings = CausalLM(width=512, depth=8, heads=8, kv_heads=4, hidden=1408)
        built = settings.build(Tokens(4096), 4096)
        params = built.init(jax.random.key(0))
        read = Pretrained(settings, 4096, built, params, "LlamaForCausalLM", {})
        return read, lambda text: Bytes().encode(text)
    if model.endswith(".gguf"):
        from dynexit.data.tokenizers.gguf import from_gguf as tokenizer

        return from_gguf(model), tokenizer(model).encode
    from dynexit.data.tokenizers.subwords import from_folder

    return from_hf(model), from_folder(model).encode


def _texts(encode: Callable[[str], list[int]], length: int, count: int) -> Int[HostArray, "B P"]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    rows: list[list[int]] = []
    for file in files:
        tokens = encode(file.read_text(errors="replace")[2000 : 2000 + 20 * length])
        if len(tokens) >= length:
            rows.append(list(tokens[:length]))
        if len(rows) == count:
            return np.array(rows, np.int32)
    raise ValueError(f"`--batches` must be at most {len(rows)}, the texts that there are")


if __name__ == "__main__":
    main()
