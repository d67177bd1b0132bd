"""Decoding with a model in the shape of Llama: rounds with drafts, tokens with exits, and a peer.

The weights are random, so that no draft is right. What a round costs does not depend on that; the
tokens that it writes are those of a given acceptance.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.bench.device.state import Record, State
from dynexit.bench.exits import compared, programs_of
from dynexit.core.data import Tokens
from dynexit.core.shapes import PyTree
from dynexit.core.types import Model
from dynexit.decoding.costs import ROUNDS
from dynexit.decoding.drafts import EarlyExit
from dynexit.decoding.session import Session
from dynexit.models.language.settings import CausalLM

SECTION = "decoding"
DTYPE = "bfloat16"
ACCEPTED = 0.8  # the acceptance at which a speed-up is given
DEEP, PARK = 0.1, 6  # the part of the tokens that runs all blocks, and sweeps that rows wait
LLAMA = CausalLM(width=2048, depth=16, heads=32, kv_heads=8, hidden=8192)
SMALL = CausalLM(width=32, depth=4, heads=2, hidden=64)


def run_decoding(suite: State, batch: int) -> None:
    """Adds records of a round without drafts, and with several numbers of drafts."""
    settings, tokens = (SMALL, 64) if suite.small else (LLAMA, 32768)
    room = 64 if suite.small else 512
    suite.log(f"decoding, batch {batch}: preparing {settings.depth} blocks of {settings.width}")
    model = settings.build(Tokens(tokens), tokens)
    assert model.decoder is not None
    weights = model.decoder.unstack(_parameters(model.init))
    size = sum(a.nbytes for a in jax.tree.leaves(weights))
    drafting = max(settings.depth // 4, 1)
    suite.log(f"decoding, batch {batch}: compiling and timing rounds")
    counts = (0, 2) if suite.small else (0, 2, 4, 6)
    draft = EarlyExit(drafting, counts[1:])
    session = Session(model, weights, slots=batch, room=room, queue=batch, draft=draft)
    seconds = np.asarray(session.given.costs, np.float64) / ROUNDS
    common = {"section": SECTION, "batch": batch, "dtype": DTYPE, "weight_bytes": size}
    for count, cost in zip(counts, seconds, strict=True):
        name = f"{count} drafts, {drafting} of {settings.depth} blocks" if count else "full"
        relative = float(cost / seconds[0])
        record: Record = common | {"program": name, "seconds": float(cost), "relative": relative}
        record |= {"bytes_per_second": float(size / cost)}
        if count:
            record |= {"speedup": written(count, ACCEPTED) / relative}
            record |= {"acceptance_to_gain": acceptance_to_gain(count, relative)}
        suite.add(record)
    if batch == max(suite.decoding_batches) and not suite.small:
        add_exits(suite, model, weights, batch, drafting, common)
    if (peer := _transformers(suite, settings, tokens, batch)) is not None:
        relative = float(peer / seconds[0])
        suite.add(common | {"program": "transformers", "seconds": peer, "relative": relative})


def add_exits(
    suite: State, model: Model, weights: PyTree, batch: int, after: int, common: Record
) -> None:
    """Adds records of tokens of which a tenth runs all blocks, and the others a quarter."""
    suite.log(f"decoding, batch {batch}: compiling and timing exits")
    deep = np.random.default_rng(1).random((batch, 64)) < DEEP
    programs = programs_of(deep, after, (PARK,))
    timed = compared(model, weights, programs, batch, prompt=16, tokens=64, repeats=3)
    for t in timed:
        name = "full, by sessions" if t.name == "full depth" else f"exits, {t.name}"
        record = common | {"program": name, "seconds": t.seconds, "mean_depth": t.mean_depth}
        suite.add(record | {"relative": t.seconds / timed[0].seconds})


def written(drafts: int, acceptance: float) -> float:
    """Tokens that a round writes: (1 - a^(d+1)) / (1 - a).

    Example:
      >>> written(2, 0.5), written(4, 1.0)
      (1.75, 5.0)
    """
    return float(sum(acceptance**k for k in range(drafts + 1)))


def acceptance_to_gain(drafts: int, relative: float) -> float | None:
    """The acceptance from which a round with drafts is worth its relative cost; None for never.

    Example:
      >>> round(acceptance_to_gain(2, 1.75), 3), acceptance_to_gain(2, 3.5)
      (0.5, None)
    """
    grid = np.linspace(0, 1, 1001)
    enough = [float(a) for a in grid if written(drafts, float(a)) >= relative]
    return enough[0] if enough else None


def _parameters(init: Callable[..., PyTree]) -> PyTree:
    narrow = lambda a: a.astype(DTYPE) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.jit(lambda key: jax.tree.map(narrow, init(key)))(jax.random.key(0))


def _transformers(suite: State, settings: CausalLM, tokens: int, batch: int) -> float | None:
    """Seconds of a token step of the same shape in transformers, eager; None if it is missing."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        suite.skip(SECTION, f"transformers, batch {batch}", f"{missing[0]} is not installed")
        return None
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    library: Any = transformers
    where = "cuda" if torch.cuda.is_available() else "cpu"
    config = library.LlamaConfig(
        vocab_size=tokens,
        hidden_size=settings.width,
        intermediate_size=settings.hidden,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads or settings.heads,
        tie_word_embeddings=True,
    )
    with torch.device(where):
        peer = library.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    prompt = torch.ones((batch, 16), dtype=torch.long, device=where)
    many = 4 if suite.small else 32
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def seconds(count: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            mask = torch.ones_like(prompt)
            peer.generate(prompt, attention_mask=mask, max_new_tokens=count, **options).cpu()
        return time.perf_counter() - start

    seconds(many)
    pairs = [(seconds(1), seconds(1 + many)) for _ in range(3)]
    return (min(b for _, b in pairs) - min(a for a, _ in pairs)) / many
