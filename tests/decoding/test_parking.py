"""Rows that wait at the first exit: what is written equals that of rows that do not wait."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.decoding import Exits, Sampling, Session
from dynexit.decoding.program import run_rounds

V, N, ROWS, LIMIT = 30, 3, 3, 12
MODEL = dx.models.CausalLM(width=16, depth=N, heads=2, kv_heads=1, context=64).build(
    dx.Tokens(V), V
)
PARAMS = MODEL.init(jax.random.key(0))
PARAMS = PARAMS | {
    "blocks": jax.tree.map(lambda a: 3 * a if a.ndim > 2 else a, PARAMS["blocks"]),
    "embed": {"tokens": 30 * PARAMS["embed"]["tokens"]},
}
RANDOM = np.random.default_rng(1)
PROMPTS = [RANDOM.integers(0, V, n) for n in (3, 8, 1, 5, 2, 6, 4)]
LIMITS = [8, 3, 12, 5, 9, 7, 4]
SAMPLINGS = [Sampling(temperature=t) for t in (0.0, 2.0, 0.0, 1.0, 0.0, 2.0, 0.0)]
CRITERIA = {
    "probability": dx.criteria.max_probability_above(0.6),
    "saturation": dx.criteria.saturation_above(0.5),  # remembers the state of the first exit
}


def begun(park, rule, criterion, count):
    exits = Exits((1, 2), criterion, rule, park=park)
    key = jax.random.key(4)
    session = Session(
        MODEL, PARAMS, slots=ROWS, room=32, queue=len(PROMPTS), exits=exits, key=key
    )  # fmt: skip
    session.add(PROMPTS[:count], LIMITS[:count], SAMPLINGS[:count])
    return session


def texts(session):
    return [(w.tokens.tolist(), w.depth.tolist(), w.reason) for w in session.progress()]


def filled_cache(session):
    """The cache, with the keys and values that no row has needed."""
    cache, parked = session.carry.cache, session.carry.parked
    if parked is not None and parked.unfilled is not None:
        left = parked.unfilled
        weights = session.given.weights
        cache = MODEL.decoder.fill(weights, 1, N, left.state, left.positions, cache)
    return jax.tree.leaves(cache)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("rule", ["propagate", "skip"])
def test_rows_that_wait_write_the_same(rule, criterion):
    given = rule, CRITERIA[criterion]
    plain, parked = begun(0, *given, ROWS), begun(3, *given, ROWS)
    plain.run()
    parked.run()
    assert texts(plain) == texts(parked)
    for a, b in zip(filled_cache(plain), filled_cache(parked), strict=True):
        for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS[:ROWS], strict=False)):
            last = len(prompt) + limit - 1  # the last token is not run
            np.testing.assert_allclose(a[row, :, :last], b[row, :, :last], atol=1e-5)
    # "saturation" never fires at the first exit, so every row waits and nothing is saved
    assert (parked.mean_deepest < plain.mean_deepest) == (criterion == "probability")
    plain, parked = begun(0, *given, len(PROMPTS)), begun(3, *given, len(PROMPTS))
    plain.run()
    while parked.busy:
        parked.run(2)  # rows wait from one call to the next
    assert texts(plain) == texts(parked)
    every = [d for _, depth, _ in texts(plain) for d in depth]
    if rule == "propagate":
        wanted = counts_of(every, criterion == "probability")
        for work in (plain.work(), parked.work()):
            assert {name: getattr(work, name) for name in wanted} == wanted
            assert (work.tokens, work.blocks) == (len(every), sum(every))
    depths = set(every)
    assert depths == ({1, 2, 3} if criterion == "probability" else {2, 3})


def counts_of(depths, reads_logits):
    """A Python count of what `Work` sums, with `propagate` and exits after blocks 1 and 2."""
    probes = readouts = fills = 0
    for depth in depths:
        probes += depth
        readouts += depth if reads_logits else 1
        fills += N - depth
    return dict(probes=probes, readouts=readouts, fills=fills, reruns=0)


def deep_places(row):
    """Whether the tokens of a row run all blocks."""
    return np.random.default_rng(row).random(LIMIT) < 0.3


def forced(slots):
    """Tokens exit at the first exit except at `deep_places` of their slot, at the last one."""
    deep = jnp.array([deep_places(row) for row in range(slots)])

    def decide(i, score, memory):
        place = jnp.round(score * LIMIT).astype(jnp.int32)
        return ~jnp.take_along_axis(memory, place[:, None], axis=1)[:, 0], memory

    score = lambda i, output, memory: (output["time"], memory)
    return dx.Criterion(score, decide, init_decide=lambda batch: deep)


def swept(slots, park):
    """Rounds and blocks of a Python loop over rows."""
    written, waiting = np.zeros(slots, int), np.zeros(slots, bool)
    rounds = blocks = sweeps = 0
    while (written < LIMIT).any():
        rounds, blocks = rounds + 1, blocks + 1
        live = written < LIMIT
        for row in np.flatnonzero(live & ~waiting):
            waiting[row] = deep_places(row)[written[row]]
            written[row] += not waiting[row]
        sweeps = sweeps + 1 if waiting.any() else 0
        if waiting.any() and (sweeps == park or not (live & ~waiting).any()):
            blocks, sweeps, written = blocks + N - 1, 0, written + waiting
            waiting[:] = False
    return rounds, blocks


def test_sweeps_are_those_of_a_loop_over_rows():
    exits = Exits((1,), forced(4), park=2)
    session = Session(MODEL, PARAMS, slots=4, room=32, queue=4, exits=exits)
    session.add(PROMPTS[:4], [LIMIT] * 4)
    session.run()
    assert (session.rounds, int(session.carry.deepest)) == swept(4, 2)
    for row, written in enumerate(session.progress()):
        assert written.depth.tolist() == np.where(deep_places(row), N, 1).tolist()


def test_a_row_that_waits_can_be_ended():
    session = begun(3, "propagate", CRITERIA["probability"], 4)
    while not session.carry.parked.waiting.any():
        session.run(1)
    slot = int(session.carry.parked.waiting.argmax())
    session.end(int(session.carry.of[slot]))
    session.run()
    found, wanted = texts(session), begun(0, "propagate", CRITERIA["probability"], 4)
    wanted.run()
    for k, (one, other) in enumerate(zip(found, texts(wanted), strict=True)):
        assert one == other or (k == slot and one[0] == other[0][: len(one[0])])


@pytest.mark.compiled
@pytest.mark.parametrize("rule", ["propagate", "skip"])
def test_the_cache_is_not_copied_in_the_loop(rule):
    session = begun(3, rule, CRITERIA["probability"], 4)
    given = session.plan, session.given, session.carry, jnp.int32(3)
    program = run_rounds.lower(*given).compile().as_text()
    cache = "f32[" + ",".join(map(str, session.carry.cache[0][0].shape)) + "]"
    assert cache in program
    assert not re.search(rf"= {re.escape(cache)}\S* (copy|gather)\(", program)


@pytest.mark.refuses
def test_recompute_and_parking_are_refused():
    for exits, error, message in (
        (Exits((1,), CRITERIA["probability"], "recompute", park=2), ValueError, "'recompute'"),
        (Exits((1,), CRITERIA["probability"], park=-1), ValueError, "exits.park"),
        (Exits((1,), CRITERIA["probability"], park=0.5), TypeError, "exits.park"),
    ):
        with pytest.raises(error, match=message):
            Session(MODEL, PARAMS, slots=1, room=8, exits=exits)
