"""What a decoding program is compiled for, and what it carries from round to round."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.decoder import Cache, Decoder
from dynexit.core.shapes import Array, Float, Int, PyTree
from dynexit.decoding.drafts import Draft, EarlyExit, PromptLookup
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
      drafts: d, drafts of a row in one round at most; 0 for none.
      exit: blocks E that draft; 0 for none.
      head: whether drafts are read through one more block.
      ngram: tokens that prompt lookup compares; 0 for none.
      chunk: tokens of a prompt that are read at once.
    """

    decoder: Decoder
    slots: int
    room: int
    uses: Uses
    log_probabilities: bool = False
    drafts: int = 0
    exit: int = 0
    head: bool = False
    ngram: int = 0
    chunk: int = 64

    def with_draft(self, draft: Draft | None) -> "Plan":
        """The plan for a kind of draft."""
        if isinstance(draft, EarlyExit):
            head = draft.head is not None
            return dataclasses.replace(self, drafts=draft.tokens, exit=draft.exit, head=head)
        if isinstance(draft, PromptLookup):
            return dataclasses.replace(self, drafts=draft.tokens, ngram=draft.ngram)
        return self


class Given(NamedTuple):
    """The arrays that no round changes.

    Attributes:
      weights: of `Decoder.unstack`; with a draft head, its block after the others.
      among: int32 `[M]`, tokens that may be drafted, or None for all.
      costs: float32 `[d+1]`, of a round with n drafts, in those of a round without.
    """

    weights: PyTree
    among: Int[Array, "_"] | None
    costs: Float[Array, "_"]


class Carry(NamedTuple):
    """The carry of the decoding loop.

    Attributes:
      requests: see `Requests`.
      waiting: int32 `[]`, the first request that no slot has taken.
      count: int32 `[]`, requests that there are; those at `count` and beyond are empty.
      of: int32 `[S]`, the request of each slot; M for none.
      filled: int32 `[S]`, tokens of each slot whose keys and values are final.
      rate: float32 `[S]`, the fraction of drafts accepted lately.
      cache: of the S slots.
      rounds: int32 `[]`, rounds so far.
    """

    requests: Requests
    waiting: Int[Array, ""]
    count: Int[Array, ""]
    of: Int[Array, "S"]
    filled: Int[Array, "S"]
    rate: Float[Array, "S"]
    cache: Cache
    rounds: Int[Array, ""]


FIRST_RATE = 0.7


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
        jnp.int32(0),
    )


def modelled_costs(plan: Plan, weights: PyTree) -> Float[Array, "_"]:
    """The cost of a round with n drafts, in rounds without, where reading weights is all there is.

    A round with n drafts reads the first E of N blocks n + 1 times, the others once, and the
    output matrix n times for drafts and once for the verification.

    Returns:
      float32 `[d+1]`.
    """
    size = lambda tree: float(sum(np.prod(a.shape) for a in jax.tree.leaves(tree)))
    n = np.arange(plan.drafts + 1)
    if not isinstance(weights, dict) or not plan.exit:
        return jnp.ones(plan.drafts + 1, jnp.float32)
    every = size(weights) / plan.decoder.depth
    part = plan.exit * every * n / (plan.decoder.depth * every)
    return jnp.asarray(1 + part, jnp.float32)
