"""Greedy text with every kind of draft beside text that is computed anew at every token."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from lossless.small_model import CONTEXT, DEPTH, MODEL

import dynexit as dx
from dynexit.decoding import EarlyExit, PromptLookup, Session


class Case(NamedTuple):
    """A configuration: `draft` is a function of the parameters and the prompts."""

    name: str
    slots: int
    draft: object = lambda params, prompts: None


class Result(NamedTuple):
    """What a case gave; `differing` has (prompt, token, gap between the two largest logits)."""

    prompts: int
    equal: int
    tokens: int
    accepted: int
    drafted: int
    rounds: int
    seconds: float
    differing: list


def early(exit, tokens, **more):
    return lambda params, prompts: EarlyExit(exit, tokens, **more)


def short_list(exit, tokens, count=32):
    """Drafts among the most frequent bytes of the prompts."""

    def draft(params, prompts):
        counts = np.bincount(np.concatenate(prompts))
        return EarlyExit(exit, tokens, among=np.sort(np.argsort(-counts)[:count]))

    return draft


def head(exit, tokens):
    """Drafts through one more block, a copy of the one that follows."""
    block = lambda params: jax.tree.map(lambda a: a[exit], params["blocks"])
    return lambda params, prompts: EarlyExit(exit, tokens, head={"block": block(params)})


GRID = (
    Case("none", 8),
    Case("EarlyExit(1, 2)", 1, early(1, 2)),
    Case("EarlyExit(1, 4)", 8, early(1, 4)),
    Case("EarlyExit(2, 2)", 32, early(2, 2)),
    Case("EarlyExit(2, 6)", 8, early(2, 6)),
    Case("EarlyExit(1, (1, 2, 4))", 8, early(1, (1, 2, 4))),
    Case("EarlyExit(1, 4, among=32 bytes)", 8, short_list(1, 4)),
    Case("EarlyExit(1, 4, head=block)", 8, head(1, 4)),
    Case("PromptLookup(4, 2)", 8, lambda params, prompts: PromptLookup(4, 2)),
    Case("PromptLookup(8, 3)", 32, lambda params, prompts: PromptLookup(8, 3)),
)


@jax.jit
def largest(params, tokens, last):
    """The two largest logits after each text, and their tokens; nothing is cached."""
    state = dx.run_full(MODEL.steps(params), MODEL.embed(params, tokens), DEPTH)[1]["logits"]
    return jax.lax.top_k(state[jnp.arange(len(last)), last], 2)


def recomputed(params, prompts, limits):
    """Greedy texts, and the gap between the two largest logits at each token."""
    text = np.zeros((len(prompts), CONTEXT), np.int32)
    length = np.array([len(prompt) for prompt in prompts])
    limit, rows = length + limits, np.arange(len(prompts))
    for k, prompt in enumerate(prompts):
        text[k, : len(prompt)] = prompt
    gaps = np.full(text.shape, np.inf)
    while len(rows := rows[length[rows] < limit[rows]]):
        some = np.resize(rows, -(-len(rows) // 256) * 256)  # few sizes, so few programs
        values, tokens = largest(params, text[some], length[some] - 1)
        text[rows, length[rows]] = np.asarray(tokens)[: len(rows), 0]
        gaps[rows, length[rows]] = -np.diff(np.asarray(values)[: len(rows)])[:, 0]
        length[rows] += 1
    parts = [slice(len(p), n) for p, n in zip(prompts, limit, strict=True)]
    return [(t[part], g[part]) for t, g, part in zip(text, gaps, parts, strict=True)]


def compared(case, params, prompts, limits, wanted):
    """Runs one case on all prompts in a queue."""
    start = time.perf_counter()
    draft = case.draft(params, prompts)
    given = dict(slots=case.slots, room=CONTEXT, queue=len(prompts), draft=draft)
    session = Session(MODEL, params, **given)
    # these costs in place of those measured here: rounds have drafts where they would not pay,
    # and the numbers in the table do not depend on the machine
    lengths = jnp.array(session.plan.lengths, jnp.float32)
    one = len(session.plan.lengths) <= 2
    costs = jnp.ones_like(lengths) if one else 1 + 0.2 * lengths
    session.given = session.given._replace(costs=costs)
    session.add(prompts, limits)
    session.run()
    found, differing = session.progress(), []
    for k, (written, (text, gaps)) in enumerate(zip(found, wanted, strict=True)):
        if not np.array_equal(written.tokens, text):
            first = int(np.flatnonzero(written.tokens != text)[0])
            differing.append((k, first, float(gaps[first])))
    count = lambda name: sum(getattr(written, name) for written in found)
    tokens = sum(len(written.tokens) for written in found)
    return Result(
        len(prompts), len(prompts) - len(differing), tokens, count("accepted"), count("drafted"),
        count("rounds"), time.perf_counter() - start, differing,
    )  # fmt: skip
