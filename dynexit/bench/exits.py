"""Tokens that exit at depths of their own beside full depth, on the same weights, in one run.

    python -m dynexit.bench.exits --batches 8 32 128 --deep 0.1

Weights are random. Each token exits after the first `--after` blocks, except for a part `--deep` of
them, drawn for each row and place, which run all blocks; so all programs with exits run the same
blocks for each token. A figure is the least time of the rounds after the first one, per token of
each row, of several repeats in turns. No row ends in these rounds, as in a session whose queue
refills its slots.
"""

import argparse
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dynexit.core.data import Tokens
from dynexit.core.shapes import Array, Bool, Float, HostArray, Int, PyTree
from dynexit.core.types import Criterion, Model
from dynexit.decoding.exits.settings import Exits
from dynexit.decoding.session import Session
from dynexit.models.language.settings import CausalLM

VOCABULARY = 4096


class Timed(NamedTuple):
    """One program on one batch.

    Attributes:
      name: of the program.
      seconds: of one token of every row.
      mean_depth: blocks of a token.
      mean_blocks: blocks that a round runs.
      depths: int32, blocks of each token of each row.
    """

    name: str
    seconds: float
    mean_depth: float
    mean_blocks: float
    depths: list[Int[HostArray, "_"]]


def forced_exits(deep: Bool[HostArray, "B tokens"]) -> Criterion:
    """Tokens exit at the first exit, except for those that are `deep`.

    The rows are the slots of a session, and a token's place is read from "time".
    """
    return Criterion(_read_time, Partial(_shallow, jnp.asarray(deep)), init_decide=_rows)


def compared(
    model: Model,
    weights: PyTree,
    programs: dict[str, Exits | None],
    batch: int,
    prompt: int,
    tokens: int,
    repeats: int,
) -> list[Timed]:
    """Times programs in turns.

    Args:
      model: with a decoder.
      weights: of `Decoder.unstack`.
      programs: name -> exits, None for full depth.
      batch: rows.
      prompt: random tokens of each prompt.
      tokens: of each row at most; a row that waits has fewer of them.
      repeats: of each program; the least time counts.
    """
    assert model.decoder is not None
    text = np.random.default_rng(0).integers(0, model.decoder.vocabulary, (batch, prompt))
    found: dict[str, Timed] = {}
    for repeat in range(repeats + 1):  # the first one compiles
        for name, exits in programs.items():
            session = Session(
                model, weights, slots=batch, room=prompt + tokens, queue=batch, exits=exits
            )
            session.add(list(text), [tokens] * batch)
            session.run(1)
            begun = sum(len(row.tokens) for row in session.progress())
            start = time.perf_counter()
            session.run(tokens - 2)
            jax.block_until_ready(session.carry.rounds)
            seconds = (time.perf_counter() - start) * batch
            depths = [row.depth for row in session.progress()]
            seconds /= sum(map(len, depths)) - begun
            if repeat:
                seconds = min(seconds, found[name].seconds if name in found else math.inf)
                mean = float(np.concatenate(depths).mean())
                found[name] = Timed(name, seconds, mean, session.mean_deepest, depths)
    return list(found.values())


def programs_of(deep: Bool[HostArray, "B tokens"], after: int, park: Sequence[int]) -> PyTree:
    """Full depth, exits by the masked and the compacted executor, and rows that wait, by name."""
    exits = lambda **given: Exits((after,), forced_exits(deep), **given)
    executors = "masked", "compacted"
    programs: dict[str, Exits | None] = {"full depth": None}
    programs |= {e: exits(executor=e) for e in executors}
    for k in park:
        programs |= {f"{e}, park={k}": exits(executor=e, park=k) for e in executors}
    return programs


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table in Markdown for each batch and part of deep tokens."""
    parser = argparse.ArgumentParser(prog="python -m dynexit.bench.exits")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--deep", type=float, nargs="+", default=[0.1])
    parser.add_argument("--park", type=int, nargs="+", default=[6], help="sweeps that rows wait")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--after", type=int, default=2, help="blocks before the exit")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=96, help="tokens to write")
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args(argv)
    if o.tokens < 4:
        parser.error(f"--tokens must be at least 4, got {o.tokens}")
    settings = CausalLM(
        width=o.width,
        depth=o.depth,
        heads=max(2, o.width // 64),
        kv_heads=max(1, o.width // 128),
        hidden=o.width * 11 // 4,
    )
    model = settings.build(Tokens(VOCABULARY), VOCABULARY)
    assert model.decoder is not None
    weights = model.decoder.unstack(model.init(jax.random.key(0)))
    for batch in o.batches:
        for part in o.deep:
            deep = np.random.default_rng(1).random((batch, o.tokens)) < part
            programs = programs_of(deep, o.after, o.park)
            sizes = o.prompt, o.tokens, o.repeats
            show(compared(model, weights, programs, batch, *sizes), batch, part)
    return 0


def show(timed: Sequence[Timed], batch: int, part: float) -> None:
    """Prints one table; the ratios are to full depth and to the masked executor."""
    by = {t.name: t for t in timed}
    print(f"\nbatch {batch}, {part:.0%} of the tokens deep\n")
    print("| program | ms a token step | over full depth | over masked | depth | blocks a round |")
    print("|---|---|---|---|---|---|")
    for t in timed:
        full, masked = (by[name].seconds / t.seconds for name in ("full depth", "masked"))
        print(
            f"| {t.name} | {1e3 * t.seconds:.2f} | {full:.2f} | {masked:.2f} | "
            f"{t.mean_depth:.2f} | {t.mean_blocks:.2f} |",
            flush=True,
        )


def _rows(batch: int) -> Int[Array, "B"]:
    return jnp.arange(batch, dtype=jnp.int32)


def _read_time(i: Array, output: PyTree, memory: PyTree) -> tuple[Float[Array, "b"], PyTree]:
    return output["time"], memory


def _shallow(
    deep: Bool[Array, "B tokens"], i: Array, time: Float[Array, "b"], row: Int[Array, "b"]
) -> tuple[Bool[Array, "b"], Int[Array, "b"]]:
    place = jnp.round(time * deep.shape[1]).astype(jnp.int32)
    return ~deep.at[row, place].get(mode="clip"), row


if __name__ == "__main__":
    raise SystemExit(main())
