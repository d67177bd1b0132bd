"""A queue of requests that runs step by step; requests may be added while it runs."""

import dataclasses
import itertools
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynexit.core.checks import positive_integer
from dynexit.core.decoder import Decoder
from dynexit.core.settings import refuse_invalid
from dynexit.core.shapes import Array, Float, HostArray, Int, Key, PyTree
from dynexit.core.types import Model
from dynexit.decoding.arguments import decoder_of, given_arrays, planned
from dynexit.decoding.checks import checked_stop
from dynexit.decoding.costs import measured_costs
from dynexit.decoding.drafts import Draft
from dynexit.decoding.exits.settings import Exits
from dynexit.decoding.exits.work import Work, work_of
from dynexit.decoding.plan import Carry, Plan, first_carry
from dynexit.decoding.program import ALL, run_rounds
from dynexit.decoding.prompts import refuse_unfit_prompts
from dynexit.decoding.requests import (
    LIMITED,
    RUNNING,
    STOPPED,
    Counts,
    no_requests,
    placed,
)
from dynexit.decoding.sampling import Rules, Sampling, Uses, rules_of
from dynexit.decoding.sharded import Shards

REASONS = {RUNNING: None, STOPPED: "stop", LIMITED: "length"}


class Written(NamedTuple):
    """What one request has so far.

    Attributes:
      request: its index, in the order in which requests were added.
      tokens, depth, log_probability: as in `Generated`.
      reason: "stop" or "length" where it has ended, else None.
      rounds, drafted, accepted: its rounds, its drafts, and those that were right.
      counts: what its exits took; zeros without exits.
    """

    request: int
    tokens: Int[HostArray, "_"]
    depth: Int[HostArray, "_"]
    log_probability: Float[HostArray, "_"] | None
    reason: str | None
    rounds: int
    drafted: int
    accepted: int
    counts: Counts


class Session:
    """Requests and the slots that run them.

    Args:
      decoder, params: as in `generate`.
      slots: rows that run at once; None for one for each entry of the queue.
      room: positions of a row at most, prompt included; rounded up, so that similar sessions share
        a compiled program.
      queue: requests that the session has entries for; rounded up.
      draft, exits, chunk, log_probabilities, key, mesh: as in `generate`; with a mesh, `slots` are
        those of each group of devices that share rows.

    Raises:
      TypeError, ValueError: as `generate`.

    Example:
      >>> import jax, dynexit as dx
      >>> model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(50), 50)
      >>> session = Session(model, model.init(jax.random.key(0)), slots=2, room=16)
      >>> session.add([np.array([1, 2, 3])], [4])
      [0]
      >>> session.run(2)
      >>> len(session.progress()[0].tokens), session.busy
      (2, True)
    """

    def __init__(
        self,
        decoder: Decoder | Model,
        params: PyTree,
        *,
        slots: int | None = None,
        room: int,
        queue: int = 16,
        draft: Draft | None = None,
        exits: Exits | None = None,
        chunk: int = 64,
        log_probabilities: bool = False,
        key: Key[Array, ""] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.decoder = decoder_of(decoder)
        self.shards = None if mesh is None else Shards(mesh)
        count = 1 if self.shards is None else self.shards.count
        share = -(-positive_integer(queue, "queue") // count)
        plan = Plan(
            self.decoder,
            share if slots is None else min(positive_integer(slots, "slots"), share),
            rounded(positive_integer(room, "room"), 64),
            Uses(),
            log_probabilities,
            chunk=min(positive_integer(chunk, "chunk"), rounded(room, 16)),
        )
        self.plan = planned(plan, draft, exits)
        self.given = given_arrays(self.plan, params, draft, exits)
        self.key = key
        self.added = 0
        self.entries: list[list[int]] = [[] for _ in range(count)]  # requests of each shard
        size = rounded(share, 1)
        if self.shards is None:
            requests = no_requests(size, self.plan.room, log_probabilities)
            carry = first_carry(self.plan, self.given, requests)
            self.carry = committed(carry, self.given.weights)
        else:
            self.given = self.shards.place(self.plan, self.given)
            self.carry = self.shards.first(self.plan, self.given, size)
        self._run = run_rounds if self.shards is None else self.shards.run
        if draft is not None:
            costs, self.carry = measured_costs(self.plan, self.given, self.carry, self._run)
            self.given = self.given._replace(costs=costs)
            if self.shards is not None:
                self.given = self.shards.place(self.plan, self.given)

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        reasons = np.asarray(self.carry.requests.reason).reshape(len(self.entries), -1)
        pairs = zip(self.entries, reasons, strict=True)
        return any((row[: len(entries)] == RUNNING).any() for entries, row in pairs)

    def add(
        self,
        prompts: list[Int[HostArray, "_"]],
        limits: list[int],
        samplings: list[Sampling] | None = None,
        stops: list[list[int]] | None = None,
        keys: list[Key[Array, ""]] | None = None,
    ) -> list[int]:
        """Adds requests to the end of the queue, on several devices to the shortest one.

        Args:
          prompts: token ids of each.
          limits: tokens to write for each.
          samplings: how its tokens are drawn; None for greedy.
          stops: its stop tokens; None for none.
          keys: its random key; None for one of the session's key and the index of the request.

        Returns:
          The index of each request.

        Raises:
          ValueError: a prompt does not fit, or the queue is full of requests that have not ended
            or that `release` was not called for.
        """
        refuse_unfit_prompts(prompts, limits, self.decoder.vocabulary, self.decoder.context)
        for k, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            if len(prompt) + limit > self.plan.room:
                raise ValueError(
                    f"`prompts[{k}]` has {len(prompt)} tokens, and with {limit} more it exceeds "
                    f"the room of {self.plan.room} tokens"
                )
        size = self.carry.requests.length.shape[-1] * len(self.entries)
        used = sum(map(len, self.entries))
        if used + len(prompts) > size:
            raise ValueError(
                f"`queue` has entries for {size} requests, and {used} are in use, "
                f"got {len(prompts)} more"
            )
        samplings = samplings or [Sampling(temperature=0.0)] * len(prompts)
        for sampling in samplings:
            refuse_invalid(sampling)
        rules, uses = rules_of(samplings)
        if uses.sampled and self.key is None and keys is None:
            raise ValueError("`key` must be given where tokens are sampled, got None")
        uses = Uses(*(a or b for a, b in zip(uses, self.plan.uses, strict=True)))
        self.plan = dataclasses.replace(self.plan, uses=uses)
        added = list(range(self.added, self.added + len(prompts)))
        if keys is None and self.key is not None:
            keys = [jax.random.fold_in(self.key, request) for request in added]
        data = [key_data(key) for key in keys] if keys else [np.zeros(2, np.uint32)] * len(added)
        stops = stops or [[] for _ in prompts]
        for token in itertools.chain(*stops):
            checked_stop(token, self.decoder.vocabulary)
        host = self._host()
        for k, request in enumerate(added):
            entries, requests = min(host, key=lambda pair: len(pair[0]))
            given = prompts[k], limits[k], stops[k], data[k], Rules(*(r[k] for r in rules))
            placed(requests, len(entries), *given)
            entries.append(request)
        self.added += len(prompts)
        self._write([requests for _, requests in host])
        self._set(queued=np.array([len(e) for e in self.entries], np.int32))
        return added

    def run(self, rounds: int | None = None) -> None:
        """Runs a number of rounds, or until all requests have ended."""
        limit = jnp.int32(ALL if rounds is None else rounds)
        self.carry = self._run(self.plan, self.given, self.carry, limit)

    def progress(self) -> list[Written]:
        """What every request has so far, in the order in which they were added."""
        found = []
        for entries, of in self._host():
            for entry, request in enumerate(entries):
                part = slice(int(of.prompt[entry]), int(of.length[entry]))
                log_p = of.log_probability[entry, part] if self.plan.log_probabilities else None
                reason = REASONS[int(of.reason[entry])]
                tokens, depth = of.tokens[entry, part], of.depth[entry, part]
                counts = int(of.rounds[entry]), int(of.drafted[entry]), int(of.accepted[entry])
                took = Counts(*(count[entry] for count in of.counts))
                found.append(Written(request, tokens, depth, log_p, reason, *counts, took))
        return sorted(found, key=lambda written: written.request)

    @property
    def rounds(self) -> int:
        """Rounds so far, of the device that ran the most."""
        return int(np.max(self.carry.rounds))

    @property
    def mean_deepest(self) -> float:
        """Mean over the rounds of the blocks of the deepest row."""
        return float(np.sum(self.carry.deepest) / max(1, np.sum(self.carry.rounds)))

    def work(self, requests: Collection[int] | None = None) -> Work | None:
        """What some requests that are not released took; None without exits.

        Args:
          requests: their indices; None for all.
        """
        if self.plan.exits is None:
            return None
        found = [w for w in self.progress() if requests is None or w.request in requests]
        return work_of(self.plan, self.given, [(w.depth, w.counts) for w in found])

    def end(self, request: int, tokens: int | None = None) -> None:
        """Ends a request now, after its first `tokens` tokens; None for those that it has."""
        shard, entry = self._find(request)
        host = [requests for _, requests in self._host()]
        r = host[shard]
        length = int(r.length[entry] if tokens is None else r.prompt[entry] + tokens)
        r.length[entry] = r.limit[entry] = length
        r.reason[entry] = STOPPED
        self._write(host)
        of = self._get("of")
        of[shard][of[shard] == entry] = r.length.shape[0]
        self._set(of=of)

    def release(self, request: int) -> None:
        """Frees the entry of a request that has ended.

        Raises:
          ValueError: it has not ended, or there is no such request.
        """
        shard, gone = self._find(request)
        host = [requests for _, requests in self._host()]
        size = host[shard].length.shape[0]
        if int(host[shard].reason[gone]) == RUNNING:
            raise ValueError(f"`request` {request} must have ended, and it is running or waiting")
        order = np.array([*range(gone), *range(gone + 1, size), gone])
        host[shard] = jax.tree.map(lambda a: a[order], host[shard])
        of, waiting, queued = (self._get(name) for name in ("of", "waiting", "queued"))
        of[shard] = np.where((of[shard] > gone) & (of[shard] < size), of[shard] - 1, of[shard])
        waiting[shard] -= gone < waiting[shard]
        queued[shard] -= 1
        self.entries[shard].pop(gone)
        self._write(host)
        self._set(of=of, waiting=waiting, queued=queued)

    def _find(self, request: int) -> tuple[int, int]:
        for shard, entries in enumerate(self.entries):
            if request in entries:
                return shard, entries.index(request)
        raise ValueError(f"`request` must be one that was added and not released, got {request}")

    def _host(self) -> list[tuple[list[int], Any]]:
        """The requests of every shard in numpy, with their indices."""
        of = jax.tree.map(np.array, jax.device_get(self.carry.requests))
        parts = (
            [of]
            if self.shards is None
            else [jax.tree.map(lambda a, k=k: a[k], of) for k in range(self.shards.count)]
        )
        return list(zip(self.entries, parts, strict=True))

    def _write(self, parts: list[Any]) -> None:
        whole = jax.tree.map(lambda *a: a[0] if self.shards is None else np.stack(a), *parts)
        where = jax.tree.map(lambda a: a.sharding, self.carry.requests)
        self.carry = self.carry._replace(requests=jax.device_put(whole, where))

    def _get(self, name: str) -> HostArray:
        """A counter of the carry, `[shards, ...]`."""
        value = np.array(getattr(self.carry, name))
        return value[None] if self.shards is None else value

    def _set(self, **values: HostArray) -> None:
        put = {}
        for name, value in values.items():
            value = value[0] if self.shards is None else value
            put[name] = jax.device_put(
                np.asarray(value, np.int32), getattr(self.carry, name).sharding
            )
        self.carry = self.carry._replace(**put)


def key_data(key: Any) -> HostArray:
    """The data of a random key, uint32 `[2]`.

    Raises:
      TypeError: `key` is no random key, or one of another generator than JAX's default.
    """
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(key)) if typed else np.zeros(0)
    if data.shape != (2,):
        raise TypeError(f"`key` must be a jax.random.key of the default generator, got {key!r}")
    return data


def committed(carry: Carry, weights: PyTree) -> Carry:
    """The carry on the device of the weights, and bound to it.

    What is written to it later is bound to its device; a carry that is not would be compiled for a
    second time then. Weights on several devices leave the carry as it is.
    """
    arrays = [a for a in jax.tree.leaves((weights, carry)) if isinstance(a, jax.Array)]
    devices = arrays[0].devices()
    if any(a.devices() != devices for a in jax.tree.leaves(weights) if isinstance(a, jax.Array)):
        return carry
    return jax.device_put(carry, next(iter(devices))) if len(devices) == 1 else carry


def rounded(value: int, least: int) -> int:
    """The smallest `least` 2^k, or three quarters of one, that is at least `value`.

    Example:
      >>> rounded(5, 1), rounded(65, 64), rounded(100, 64)
      (6, 96, 128)
    """
    size = least
    while size < value:
        size *= 2
    return size * 3 // 4 if size > least and size * 3 // 4 >= value and size % 4 == 0 else size
