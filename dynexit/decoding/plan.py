"""What a decoding program is compiled for, and what it carries from round to round."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from dynexit.core.decoder import Cache, Decoder
from dynexit.core.shapes import Array, Float, Int, PyTree
from dynexit.core.types import Criterion
from dynexit.decoding.drafts import Draft, PromptLookup
from dynexit.decoding.exits.plan import ExitPlan, Parked, none_parked
from dynexit.decoding.requests import Requests
from dynexit.decoding.sampling import Uses


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a program; equal plans share one compiled program.

    Attributes:
      decoder: the model.
      slots: S, rows that run at once.
      room: T, positions of a row.
      uses: how tokens are drawn.
      log_probabilities: whether they are recorded.
      lengths: the numbers of drafts that a round may have, rising from 0.
      exit: blocks E that draft; 0 for none.
      head: whether drafts are read through one more block.
      ngram: tokens that prompt lookup compares; 0 for none.
      chunk: tokens of a prompt that are read at once.
      exits: where single tokens exit; None for none.
    """

    decoder: Decoder
    slots: int
    room: int
    uses: Uses
    log_probabilities: bool = False
    lengths: tuple[int, ...] = (0,)
    exit: int = 0
    head: bool = False
    ngram: int = 0
    chunk: int = 64
    exits: ExitPlan | None = None

    @property
    def drafts(self) -> int:
        """Drafts of a row in one round, at most."""
        return self.lengths[-1]

    @property
    def width(self) -> int:
        """Tokens of a row in one round, at most."""
        return self.drafts + 1 if self.exits is None else self.exits.window

    def with_draft(self, draft: Draft | None) -> "Plan":
        """The plan for a kind of draft."""
        if draft is None:
            return self
        several = draft.tokens if isinstance(draft.tokens, tuple) else (draft.tokens,)
        lengths = tuple(sorted({0, *several}))
        if isinstance(draft, PromptLookup):
            return dataclasses.replace(self, lengths=lengths, ngram=draft.ngram)
        head = draft.head is not None
        return dataclasses.replace(self, lengths=lengths, exit=draft.exit, head=head)


class Given(NamedTuple):
    """The arrays that no round changes.

    Attributes:
      weights: of `Decoder.unstack`; with a draft head, its block after the others.
      among: int32 `[M]`, tokens that may be drafted, or whose logits exits read; None for all.
      costs: float32 `[K]`, of a round with each of `Plan.lengths`, in any unit.
      criterion: when a token exits, where there are exits.
    """

    weights: PyTree
    among: Int[Array, "_"] | None
    costs: Float[Array, "_"]
    criterion: Criterion | None = None


class Carry(NamedTuple):
    """The carry of the decoding loop.

    Attributes:
      requests: see `Requests`.
      waiting: int32 `[]`, the first request that no slot has taken.
      queued: int32 `[]`, requests that there are; later entries are empty.
      of: int32 `[S]`, the request of each slot; M for none.
      filled: int32 `[S]`, tokens of each slot whose keys and values are final.
      rate: float32 `[S]`, the fraction of drafts accepted lately.
      cache: of the S slots.
      choice: int32 `[]`, index of the next round's number of drafts; K where a slot must first take
        a request or read its prompt, or where none is left.
      rounds: int32 `[]`, rounds so far.
      deepest: int32 `[]`, sum over the rounds of the blocks of the deepest row.
      parked: rows that wait for their deeper blocks; None where no row ever does.
    """

    requests: Requests
    waiting: Int[Array, ""]
    queued: Int[Array, ""]
    of: Int[Array, "S"]
    filled: Int[Array, "S"]
    rate: Float[Array, "S"]
    cache: Cache
    choice: Int[Array, ""]
    rounds: Int[Array, ""]
    deepest: Int[Array, ""]
    parked: Parked | None = None


FIRST_RATE = 0.85  # acceptance of the drafts of a request before any of them is verified


def first_carry(plan: Plan, given: Given, requests: Requests) -> Carry:
    """The carry before the first round: all slots empty."""
    size = requests.length.shape[0]
    cache = plan.decoder.empty(given.weights, plan.slots, plan.room)
    return Carry(
        requests,
        jnp.int32(0),
        jnp.int32(0),
        jnp.full(plan.slots, size, jnp.int32),
        jnp.zeros(plan.slots, jnp.int32),
        jnp.full(plan.slots, FIRST_RATE, jnp.float32),
        cache,
        jnp.int32(len(plan.lengths)),
        jnp.int32(0),
        jnp.int32(0),
        none_parked(plan.exits, plan.decoder, given.weights, plan.slots, plan.room),
    )
