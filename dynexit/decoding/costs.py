"""What a round with each number of drafts costs, measured on the device with the program itself."""

import itertools
import math
import time
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Float, Int, PyTree
from dynexit.decoding.plan import Carry, Given, Plan
from dynexit.decoding.requests import NO_TOKEN

REPEATS, ROUNDS = 3, 2
LEAST = 1e-6  # seconds
_known: dict[object, tuple[float, ...]] = {}


Run: TypeAlias = Callable[[Plan, Given, Carry, Int[Array, ""]], Carry]


def measured_costs(
    plan: Plan, given: Given, carry: Carry, run: Run
) -> tuple[Float[Array, "K"], Carry]:
    """Seconds of a round with each of `plan.lengths`, and the carry to go on with.

    Slots are filled with made-up requests, which are removed afterwards. The costs of a plan are
    measured once in a process.

    Args:
      plan, given: of the program; `given.costs` is not read.
      carry: without requests, donated; of one device, or with an axis of shards.
      run: the compiled loop.

    Returns:
      float32 `[K]`, and a carry without requests.
    """
    leaves = jax.tree.leaves((given, carry.of))
    key = plan, jax.tree.structure(given), tuple((a.shape, a.sharding) for a in leaves)
    if key not in _known:
        cases = list(itertools.product(range(len(plan.lengths)), (0, ROUNDS)))
        least = dict.fromkeys(cases, math.inf)
        for _, (k, rounds) in itertools.product(range(1 + REPEATS), cases):  # the first compiles
            # no weak type, and placed as those that are returned: one program for both
            forced = jnp.where(jnp.arange(len(plan.lengths)) == k, jnp.float32(1), jnp.inf)
            forced = jax.device_put(forced, given.costs.sharding)
            carry = jax.block_until_ready(_busy(plan, carry))
            start = time.perf_counter()
            carry = run(plan, given._replace(costs=forced), carry, jnp.int32(rounds))
            jax.block_until_ready(carry.rounds)
            least[k, rounds] = min(least[k, rounds], time.perf_counter() - start)
        call = min(least[k, 0] for k in range(len(plan.lengths)))  # without any round
        seconds = (least[k, ROUNDS] - call for k in range(len(plan.lengths)))
        _known[key] = tuple(max(s, LEAST) / ROUNDS for s in seconds)
    costs = jnp.array(_known[key], jnp.float32)
    return jax.device_put(costs, given.costs.sharding), _idle(carry)


def _busy(plan: Plan, carry: Carry) -> Carry:
    """Every slot in the middle of the same made-up text."""
    requests, size = carry.requests, carry.requests.length.shape[-1]
    full = lambda a, value: jnp.full_like(a, value)
    middle = plan.room // 2
    requests = requests._replace(
        length=full(requests.length, middle + 1),
        prompt=full(requests.prompt, 1),
        limit=full(requests.limit, plan.room),
        reason=full(requests.reason, 0),
        stops=full(requests.stops, NO_TOKEN),
    )
    of = jnp.broadcast_to(jnp.arange(plan.slots, dtype=jnp.int32) % size, carry.of.shape)
    filled = full(carry.filled, middle)
    none = {name: full(getattr(carry, name), size) for name in ("waiting", "queued")}
    return _as_before(carry, carry._replace(requests=requests, of=of, filled=filled, **none))


def _idle(carry: Carry) -> Carry:
    """The carry without requests."""
    size = carry.requests.length.shape[-1]
    zeros: PyTree = jax.tree.map(jnp.zeros_like, carry.requests)
    names = "waiting", "queued", "rounds", "deepest"
    counters = {name: jnp.zeros_like(getattr(carry, name)) for name in names}
    of, filled = jnp.full_like(carry.of, size), jnp.zeros_like(carry.filled)
    return _as_before(carry, carry._replace(requests=zeros, of=of, filled=filled, **counters))


def _as_before(old: Carry, new: Carry) -> Carry:
    """The new carry on the devices of the old one."""
    where = jax.tree.map(lambda a: a.sharding, old._replace(cache=()))
    return jax.device_put(new._replace(cache=()), where)._replace(cache=new.cache)
