"""Many calls with other values: nothing is compiled again, and no memory is kept."""

import gc
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_language import tiny_language

import dynexit as dx
from dynexit.decoding import EarlyExit, Exits, Sampling, Session, generate
from dynexit.decoding.program import run_rounds

LANGUAGE = tiny_language()
MODEL, PARAMS = LANGUAGE.model, LANGUAGE.params
WEIGHTS = MODEL.decoder.unstack(PARAMS)
CALLS, WARM, MIB = 1000, 100, 2**20


def one_call(random, kind):
    """`generate` with other prompts, limits, queue, threshold, temperature and stop token."""
    count = random.integers(5, 7)  # queues of 5 and 6 share a program
    # the longest prompt decides the room and the chunk, which are rounded up
    lengths = [random.integers(33, 41), *random.integers(1, 41, count - 1)]
    prompts = [random.integers(0, 256, length) for length in lengths]
    limits = random.integers(1, 6, count).tolist()
    draft = EarlyExit(1, 2) if kind == "drafts" else None
    given = dict(sampling=Sampling(float(random.uniform(0.5, 2))), key=jax.random.key(0))
    if kind == "exits":
        given = dict(exits=Exits((1,), dx.criteria.margin_above(float(random.uniform()))))
    stop = int(random.integers(0, 256))
    return generate(MODEL, WEIGHTS, prompts, limits, draft=draft, slots=2, stop=stop, **given)


def resident():
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def state():
    gc.collect()
    return run_rounds._cache_size(), len(jax.live_arrays()), resident()


class Compilations:
    """Counts what XLA compiles, programs of single operations included."""

    def __init__(self):
        self.count = 0

    def __call__(self, event, seconds, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    listener = Compilations()
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield listener
    jax.monitoring.unregister_event_duration_listener(listener)


def test_other_thresholds_compile_nothing(compilations):
    random = np.random.default_rng(0)
    one_call(random, "exits")
    assert (first := compilations.count) > 0
    for _ in range(5):
        one_call(random, "exits")
    assert compilations.count == first


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["drafts", "exits"])
def test_calls_of_generate_compile_nothing_and_keep_no_memory(kind, compilations):
    random = np.random.default_rng(0)
    for _ in range(WARM):
        one_call(random, kind)
    before, compiled = state(), compilations.count
    for _ in range(CALLS - WARM):
        one_call(random, kind)
    after = state()
    assert compilations.count == compiled
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 8 * MIB


@pytest.mark.slow
def test_requests_of_a_session_compile_nothing_and_keep_no_memory(compilations):
    """A server that never ends: requests are added while others run, and released."""
    random = np.random.default_rng(0)
    given = dict(slots=2, room=64, queue=4, draft=EarlyExit(1, 2), key=jax.random.key(0))
    session, running = Session(MODEL, WEIGHTS, **given), []

    def one_request(k):
        prompt = random.integers(0, 256, random.integers(1, 40))
        sampling = Sampling(float(random.uniform(0.5, 2)))
        running.extend(session.add([prompt], [int(random.integers(1, 8))], [sampling]))
        if k % 10 == 9:
            session.end(running[-1])
        while len(running) > 2:
            session.run(2)
            for written in session.progress():
                if written.reason is not None:
                    session.release(written.request)
                    running.remove(written.request)

    for k in range(WARM):
        one_request(k)
    before, compiled = state(), compilations.count
    for k in range(CALLS - WARM):
        one_request(k)
    after = state()
    assert compilations.count == compiled
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 8 * MIB
