"""The queue of prompts, with what has been written for each of them so far."""

from typing import NamedTuple

import jax.numpy as jnp

from dynexit.core.shapes import Array, Float, HostArray, Int, Shaped, Size
from dynexit.decoding.sampling import Rules

RUNNING, STOPPED, LIMITED = 0, 1, 2  # a stop token, the limit of tokens
NO_TOKEN = -1
STOPS = 8  # stop tokens of a row at most


class Counts(NamedTuple):
    """What the exits of each request took, int32 `[M]`; see `dynexit.decoding.exits.work.Work`."""

    probes: Int[Array, "M"]
    readouts: Int[Array, "M"]
    fills: Int[Array, "M"]
    reruns: Int[Array, "M"]


class Requests(NamedTuple):
    """Leaves `[M, ...]`, one entry a prompt, in the order in which they are taken.

    Attributes:
      tokens: int32 `[M, T]`, the prompt and what follows it.
      prompt: int32 `[M]`, tokens of the prompt.
      length: int32 `[M]`, tokens so far, the prompt included.
      limit: int32 `[M]`, tokens at most, the prompt included.
      stops: int32 `[M, K]`, tokens that end the text; `NO_TOKEN` for none.
      keys: uint32 `[M, 2]`, the data of a random key.
      rules: how tokens are drawn.
      depth: int32 `[M, T]`, blocks that chose each token: E for an accepted draft of E blocks.
      log_probability: float32 `[M, T]`, ln p of each token at temperature 1; empty if not wanted.
      reason: int32 `[M]`: `RUNNING`, `STOPPED` or `LIMITED`.
      rounds, drafted, accepted: int32 `[M]`, rounds of each row, and its drafts.
      counts: what its exits took; zeros where there are none.
    """

    tokens: Int[Array, "M T"]
    prompt: Int[Array, "M"]
    length: Int[Array, "M"]
    limit: Int[Array, "M"]
    stops: Int[Array, "M K"]
    keys: Shaped[Array, "M 2"]
    rules: Rules
    depth: Int[Array, "M T"]
    log_probability: Float[Array, "M _"]
    reason: Int[Array, "M"]
    rounds: Int[Array, "M"]
    drafted: Int[Array, "M"]
    accepted: Int[Array, "M"]
    counts: Counts


def no_requests(size: Size, room: int, log_probabilities: bool) -> Requests:
    """A queue of `size` entries of `room` tokens, all of them empty."""
    none = lambda *shape: jnp.zeros(shape, jnp.int32)
    rules = Rules(*(jnp.zeros(size, jnp.int32 if f == "top_k" else jnp.float32)
                    for f in Rules._fields))  # fmt: skip
    return Requests(
        tokens=none(size, room),
        prompt=none(size),
        length=none(size),
        limit=none(size),
        stops=jnp.full((size, STOPS), NO_TOKEN, jnp.int32),
        keys=jnp.zeros((size, 2), jnp.uint32),
        rules=rules,
        depth=none(size, room),
        log_probability=jnp.zeros((size, room if log_probabilities else 0), jnp.float32),
        reason=none(size),
        rounds=none(size),
        drafted=none(size),
        accepted=none(size),
        counts=Counts(*(none(size) for _ in Counts._fields)),
    )


def placed(
    requests: Requests,
    entry: int,
    prompt: Int[HostArray, "_"],
    limit: int,
    stops: list[int],
    key: Shaped[HostArray, "2"],
    rules: Rules,
) -> None:
    """Writes a new request to an entry, in place; leaves are numpy arrays.

    Raises:
      ValueError: more stop tokens than there is room for.
    """
    if len(stops) > STOPS:
        raise ValueError(f"`stop` must be at most {STOPS} tokens, got {len(stops)}")
    for name in ("tokens", "reason", "rounds", "drafted", "accepted", "depth", "log_probability"):
        getattr(requests, name)[entry] = 0
    for count in requests.counts:
        count[entry] = 0
    requests.tokens[entry, : len(prompt)] = prompt
    requests.prompt[entry] = requests.length[entry] = len(prompt)
    requests.limit[entry] = len(prompt) + limit
    requests.stops[entry] = NO_TOKEN
    requests.stops[entry, : len(stops)] = stops
    requests.keys[entry] = key
    for whole, value in zip(requests.rules, rules, strict=True):
        whole[entry] = value
