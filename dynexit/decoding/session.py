"""A queue of requests that runs step by step; requests may be added while it runs."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import positive_integer
from dynexit.core.decoder import Decoder
from dynexit.core.settings import refuse_invalid
from dynexit.core.shapes import Array, Float, HostArray, Int, Key, PyTree
from dynexit.core.types import Model
from dynexit.decoding.costs import measured_costs
from dynexit.decoding.drafts import Draft, EarlyExit, checked_draft
from dynexit.decoding.exits import Exits, checked_exits
from dynexit.decoding.plan import Given, Plan, first_carry
from dynexit.decoding.program import run_rounds
from dynexit.decoding.prompts import refuse_unfit_prompts
from dynexit.decoding.requests import LIMITED, RUNNING, STOPPED, Requests, no_requests, placed
from dynexit.decoding.sampling import Sampling, Uses, rules_of

REASONS = {RUNNING: None, STOPPED: "stop", LIMITED: "length"}
ALL = np.iinfo(np.int32).max // 2


class Written(NamedTuple):
    """What one request has so far.

    Attributes:
      request: its index, in the order in which requests were added.
      tokens, depth, log_probability: as in `Generated`.
      reason: "stop" or "length" where it has ended, else None.
    """

    request: int
    tokens: Int[HostArray, "_"]
    depth: Int[HostArray, "_"]
    log_probability: Float[HostArray, "_"] | None
    reason: str | None


class Session:
    """Requests and the slots that run them.

    Args:
      decoder, params: as in `generate`.
      slots: rows that run at once.
      room: positions of a row at most, prompt included; rounded up, so that similar sessions share
        a compiled program.
      queue: requests that the session has entries for; rounded up.
      draft, exits, chunk, log_probabilities, key: as in `generate`.

    Raises:
      TypeError, ValueError: as `generate`.

    Example:
      >>> import dynexit as dx
      >>> model = dx.models.CausalLM(width=16, depth=3, heads=2).build(dx.Tokens(50), 50)
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
        slots: int,
        room: int,
        queue: int = 16,
        draft: Draft | None = None,
        exits: Exits | None = None,
        chunk: int = 64,
        log_probabilities: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> None:
        self.decoder = decoder_of(decoder)
        checked_draft(draft, self.decoder)
        weights = self.decoder.unstack(params)
        among = None
        if isinstance(draft, EarlyExit):
            among = None if draft.among is None else jnp.asarray(draft.among, jnp.int32)
            if draft.head is not None:
                weights = self.decoder.with_head(weights, draft.head)
        plan = Plan(
            self.decoder,
            positive_integer(slots, "slots"),
            rounded(positive_integer(room, "room"), 64),
            Uses(),
            log_probabilities,
            chunk=min(positive_integer(chunk, "chunk"), rounded(room, 16)),
        )
        self.plan = plan.with_draft(draft)
        self.given = Given(weights, among, jnp.ones(len(self.plan.lengths)))
        if exits is not None:
            if draft is not None:
                raise ValueError("`exits` must be None where `draft` is given: drafts are verified")
            self.plan = dataclasses.replace(self.plan, exits=checked_exits(exits, self.decoder))
            self.given = self.given._replace(criterion=exits.criterion)
        self.key = key
        self.added = 0
        self.entries: list[int] = []  # the index of the request in each entry
        size = rounded(positive_integer(queue, "queue"), 1)
        self.carry = first_carry(
            self.plan, self.given, no_requests(size, self.plan.room, log_probabilities)
        )
        if draft is not None:
            costs, self.carry = measured_costs(self.plan, self.given, self.carry)
            self.given = self.given._replace(costs=costs)

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        reasons = np.asarray(self.carry.requests.reason)[: len(self.entries)]
        return bool((reasons == RUNNING).any())

    def add(
        self,
        prompts: list[Int[HostArray, "_"]],
        limits: list[int],
        samplings: list[Sampling] | None = None,
        stops: list[list[int]] | None = None,
    ) -> list[int]:
        """Adds requests to the end of the queue.

        Args:
          prompts: token ids of each.
          limits: tokens to write for each.
          samplings: how its tokens are drawn; None for greedy.
          stops: its stop tokens; None for none.

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
        size = self.carry.requests.length.shape[0]
        if len(self.entries) + len(prompts) > size:
            raise ValueError(
                f"`queue` has entries for {size} requests, and {len(self.entries)} are in use, "
                f"got {len(prompts)} more"
            )
        samplings = samplings or [Sampling(temperature=0.0)] * len(prompts)
        for sampling in samplings:
            refuse_invalid(sampling)
        rules, uses = rules_of(samplings)
        if uses.sampled and self.key is None:
            raise ValueError("`key` must be given where tokens are sampled, got None")
        uses = Uses(*(a or b for a, b in zip(uses, self.plan.uses, strict=True)))
        self.plan = dataclasses.replace(self.plan, uses=uses)
        index = list(range(self.added, self.added + len(prompts)))
        keys = np.zeros((len(prompts), 2), np.uint32)
        if self.key is not None:
            fold = jax.vmap(jax.random.fold_in, (None, 0))
            keys = np.asarray(jax.random.key_data(fold(self.key, np.array(index))))
        stops = stops or [[] for _ in prompts]
        self._edit(lambda r: placed(r, len(self.entries), prompts, limits, stops, keys, rules))
        self.entries += index
        self.added += len(prompts)
        self.carry = self.carry._replace(queued=jnp.int32(len(self.entries)))
        return index

    def run(self, rounds: int | None = None) -> None:
        """Runs a number of rounds, or until all requests have ended."""
        limit = jnp.int32(ALL if rounds is None else rounds)
        self.carry = run_rounds(self.plan, self.given, self.carry, limit)

    def progress(self) -> list[Written]:
        """What every request has so far, in the order in which they were added."""
        of = jax.device_get(self.carry.requests)
        found = []
        for entry, index in enumerate(self.entries):
            part = slice(int(of.prompt[entry]), int(of.length[entry]))
            log_p = of.log_probability[entry, part] if self.plan.log_probabilities else None
            reason = REASONS[int(of.reason[entry])]
            tokens, depth = of.tokens[entry, part], of.depth[entry, part]
            found.append(Written(index, tokens, depth, log_p, reason))
        return found

    def counts(self) -> dict[str, Int[HostArray, "M"]]:
        """Rounds, drafts and accepted drafts of every request."""
        of = jax.device_get(self.carry.requests)
        names = "rounds", "drafted", "accepted"
        return {name: np.asarray(getattr(of, name))[: len(self.entries)] for name in names}

    def end(self, index: int, tokens: int | None = None) -> None:
        """Ends a request now, after its first `tokens` tokens; None for those that it has.

        A request that waits in the queue ends when a slot takes it, after one token.
        """
        entry = self.entries.index(index)

        def edit(r: Requests) -> None:
            length = int(r.length[entry] if tokens is None else r.prompt[entry] + tokens)
            r.length[entry] = r.limit[entry] = length
            r.reason[entry] = STOPPED

        self._edit(edit)
        size = self.carry.requests.length.shape[0]
        of = np.asarray(self.carry.of)
        self.carry = self.carry._replace(of=jnp.asarray(np.where(of == entry, size, of)))

    def release(self, index: int) -> None:
        """Frees the entry of a request that has ended."""
        gone = self.entries.index(index)
        size = self.carry.requests.length.shape[0]
        order = np.array([*range(gone), *range(gone + 1, size), gone])
        requests = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[order]), self.carry.requests)
        of, waiting = np.asarray(self.carry.of), int(self.carry.waiting)
        if int(self.carry.requests.reason[gone]) == RUNNING:
            raise ValueError(f"`index` {index} must be a request that has ended, got a running one")
        moved = np.where((of > gone) & (of < size), of - 1, of)
        self.entries.pop(gone)
        self.carry = self.carry._replace(
            requests=requests,
            of=jnp.asarray(moved),
            waiting=jnp.int32(waiting - (gone < waiting)),
            queued=jnp.int32(len(self.entries)),
        )

    def _edit(self, edit: Any) -> None:
        """Changes the requests on the host."""
        requests = jax.tree.map(np.array, jax.device_get(self.carry.requests))
        edit(requests)
        self.carry = self.carry._replace(requests=jax.tree.map(jnp.asarray, requests))


def decoder_of(decoder: Decoder | Model) -> Decoder:
    """The decoder of a model, or the decoder that is given.

    Raises:
      TypeError: the model cannot decode.
    """
    found = decoder.decoder if isinstance(decoder, Model) else decoder
    needed = "unstack", "empty", "embed", "blocks", "fill", "logits"
    if not all(callable(getattr(found, name, None)) for name in needed):
        raise TypeError(
            "`decoder` must be a model with a decoder, such as dx.models.CausalLM, "
            f"got {type(found if found is not None else decoder).__name__}"
        )
    return found


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
