"""The choice of the next round, and what its compiled program writes to memory."""

import re

import jax
import jax.numpy as jnp
import pytest

import dynexit as dx
from dynexit.decoding.drafts import EarlyExit
from dynexit.decoding.program import run_rounds
from dynexit.decoding.rounds.choice import MARGIN, next_round
from dynexit.decoding.session import Session
from dynexit.layers.panels import panels_are_fast

SETTINGS = dx.models.CausalLM(width=64, depth=3, heads=4, kv_heads=2, hidden=96, context=64)
MODEL = SETTINGS.build(dx.Tokens(257), 257)
PARAMS = MODEL.init(jax.random.key(0))


def two_rows(costs, rates, left, waiting=0):
    """A carry of two rows that have `left` tokens to write."""
    session = Session(MODEL, PARAMS, slots=2, room=64, queue=4, draft=EarlyExit(1, 3))
    known = jnp.array([10, 10, 10, 10], jnp.int32)
    limit = known.at[:2].add(jnp.array(left, jnp.int32))
    requests = session.carry.requests._replace(length=known, limit=limit)
    carry = session.carry._replace(
        requests=requests,
        of=jnp.array([0, 1], jnp.int32),
        filled=known[:2] - 1,
        rate=jnp.array(rates, jnp.float32),
        waiting=jnp.int32(2),
        queued=jnp.int32(2 + waiting),
    )
    given = session.given._replace(costs=jnp.array(costs, jnp.float32))
    return int(next_round(session.plan, given, carry))


def test_the_last_row_decides_when_none_waits():
    rates = [0.9, 0.01]  # 3.4 and 1.0 tokens in a round with 3 drafts
    assert two_rows((1.0, 2.0), rates, (20, 20)) == 0
    assert two_rows((1.0, 2.0), rates, (20, 20), waiting=1) == 1
    assert two_rows((1.0, 2.0), rates, (40, 10)) == 1


@pytest.mark.parametrize("waiting", [0, 1])
def test_drafts_must_promise_more_than_the_margin(waiting):
    written = 1 + 0.5 + 0.25 + 0.125
    for gain, choice in ((1 + 0.8 * MARGIN, 0), (1 + 1.2 * MARGIN, 1)):
        assert two_rows((1.0, written / gain), (0.5, 0.5), (20, 20), waiting) == choice


@pytest.mark.parametrize("drafts", [1, 2])
def test_no_broadcast_of_a_matrix_is_written(drafts):
    if not panels_are_fast():
        pytest.skip("this CPU multiplies transposed matrices")
    session = Session(MODEL, PARAMS, slots=4, room=64, queue=4, draft=EarlyExit(1, drafts))
    given = session.plan, session.given, session.carry, jnp.int32(3)
    program = run_rounds.lower(*given).compile().as_text()
    sizes = {
        p["panels"].shape for p in session.given.weights["blocks"][0].values() if "panels" in p
    }
    assert (96 // 16, 64, 16) in sizes
    computed = [part for part in program.split("\n\n") if "fused_computation" not in part[:40]]
    for size in sizes:
        shape = rf"= f32\[\d+,{','.join(map(str, size))}\]"
        assert re.findall(shape, program)  # within a fusion
        assert not [x for part in computed for x in re.findall(shape + r".*fusion\(", part)]
