"""Decoding beside other libraries, and a queue beside static batches, with the same weights.

    python -m dynexit.runs.generation.benchmark --batches 1 8      # random weights, 8 x 512
    python -m dynexit.runs.generation.benchmark --model MODEL --exit 2 --lookup 6
    python -m dynexit.runs.generation.benchmark --queue 64 --slots 8 --mean 48
    python -m dynexit.runs.generation.benchmark --right --exit 2 --queue 32 --slots 8 --equal

MODEL is a run folder, a folder of transformers or a GGUF file. Prompts are pieces of Python's
standard library.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import jax

from dynexit.bench.generation import (
    Write,
    geometric_lengths,
    library_texts,
    timed,
    timed_queue,
)
from dynexit.bench.generation_peers import peers
from dynexit.core.data import Tokens
from dynexit.data.tokenizers.bytes import Bytes
from dynexit.decoding.drafts import Draft, EarlyExit, PromptLookup
from dynexit.decoding.generate import generate
from dynexit.models.language.settings import CausalLM
from dynexit.runs.language import LanguageModel, load_language


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each library and each kind of draft.

    Args:
      argv: options; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Decoding beside other libraries.")
    parser.add_argument("--model", help="a run folder, a folder of transformers or a GGUF file")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=49, help="tokens to write")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--exit", type=int, default=0, help="blocks that draft")
    parser.add_argument(
        "--drafts", type=int, nargs="+", default=[4], help="drafts of these blocks in a round"
    )
    parser.add_argument(
        "--lookup", type=int, nargs="+", default=[], help="drafts of prompt lookup in a round"
    )
    parser.add_argument("--width", type=int, default=512, help="of random weights")
    parser.add_argument(
        "--right",
        action="store_true",
        help="random weights whose blocks after --exit add nothing, so that every draft is right",
    )
    parser.add_argument("--no-peer", action="store_true", help="without other libraries")
    parser.add_argument("--queue", type=int, default=0, help="prompts of a queue, timed instead")
    parser.add_argument("--slots", type=int, default=8, help="rows of the queue that run at once")
    parser.add_argument("--mean", type=float, default=48, help="tokens of the queue, on average")
    parser.add_argument("--equal", action="store_true", help="as many tokens for every prompt")
    options = parser.parse_args(argv)
    if options.right and (options.model is not None or not options.exit):
        parser.error("argument --right: needs --exit and no --model")
    right = options.exit if options.right else None
    if options.model is None:
        language = _random(options.width, right)
    else:
        language = load_language(options.model)
    drafts: dict[str, Draft | None] = {"plain": None}
    if options.exit:
        name = f"{options.exit} blocks, {_listed(options.drafts)} drafts"
        drafts[name] = EarlyExit(options.exit, tuple(options.drafts))
    if options.lookup:
        name = f"prompt lookup, {_listed(options.lookup)} drafts"
        drafts[name] = PromptLookup(tuple(options.lookup))
    decoder: Any = language.model.decoder
    weights = decoder.unstack(language.params)
    if options.queue:
        _queue(language, weights, drafts, options)
        return
    writers: dict[str, Write] = {
        name: lambda x, n, draft=draft: generate(language.model, weights, x, n, draft=draft).tokens
        for name, draft in drafts.items()
    }
    if not options.no_peer:
        more = options.exit, max(options.drafts), max(options.lookup, default=0)
        writers = peers(_settings(decoder), language.params, *more) | writers
    text = library_texts(language.tokenizer.encode, options.prompt, max(options.batches))
    for batch in options.batches:
        timed(writers, text[:batch], options.tokens, options.repeats)


def _queue(language: LanguageModel, weights: Any, drafts: dict[str, Draft | None], of: Any) -> None:
    prompts = library_texts(language.tokenizer.encode, of.prompt, of.queue)
    decoder: Any = language.model.decoder
    most = math.inf if decoder.context is None else decoder.context - of.prompt
    lengths = [of.mean] * of.queue if of.equal else geometric_lengths(of.queue, of.mean)
    limits = [int(min(n, most)) for n in lengths]
    print(f"{of.queue} prompts, {sum(limits)} tokens of {min(limits)} to {max(limits)} each")
    results = timed_queue(language.model, weights, prompts, limits, of.slots, drafts, of.repeats)
    for found in results:
        print(
            f"{of.slots} slots, {found.draft:28s} {found.kind:14s} {found.seconds:8.2f} s, "
            f"{sum(limits) / found.seconds:8.1f} tokens/s, {found.rounds:5d} rounds, "
            f"{results[0].seconds / found.seconds:5.2f} times plain static batches, "
            f"{found.equal} of {of.queue} texts equal",
            flush=True,
        )


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _random(width: int, right: int | None) -> LanguageModel:
    """Random weights; with `right`, the blocks from there on add nothing to the state."""
    settings = CausalLM(width=width, depth=8, heads=8, kv_heads=4, hidden=width * 11 // 4)
    model = settings.build(Tokens(4096), 4096)
    params = model.init(jax.random.key(0))
    if right is not None:
        for part in ("out", "down"):
            weight = params["blocks"][part]["weight"]
            params["blocks"][part]["weight"] = weight.at[right:].set(0)
    return LanguageModel("random", model, params, Bytes())


def _settings(decoder: Any) -> CausalLM:
    found = getattr(decoder, "settings", None)
    if not isinstance(found, CausalLM):
        raise TypeError(
            "`--model` must be a dx.models.CausalLM, which other libraries can read, or add "
            f"--no-peer; got {type(decoder).__name__}"
        )
    return found


if __name__ == "__main__":
    main()
