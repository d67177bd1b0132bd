"""The static part of exits, and the rows that wait for their deeper blocks."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.decoder import Decoder
from dynexit.core.shapes import Array, Bool, Int, PyTree, Rows
from dynexit.engine.run import Executor

CacheRule: TypeAlias = Literal["propagate", "recompute", "skip"]


class ExitPlan(NamedTuple):
    """The static part of `dx.decoding.Exits`.

    Attributes:
      after: numbers of blocks after which tokens may exit.
      cache: what deeper blocks keep of a token that exited.
      window: tokens that a row runs at once.
      executor: as in `run_until`.
      park: sweeps of the blocks before the first exit that a row waits for, at most; 0 for none.
    """

    after: tuple[int, ...]
    cache: CacheRule
    window: int
    executor: Executor
    park: int = 0


class Unfilled(NamedTuple):
    """Tokens that exited at the first exit, whose deeper keys and values are not yet computed.

    Attributes:
      state: with which they exited, leaves `[S, k, ...]`.
      positions: int32 `[S, k]`, the room T for none.
      sweeps: int32 `[]`, entries of a row that are in use.
    """

    state: Rows
    positions: Int[Array, "S k"]
    sweeps: Int[Array, ""]


class Parked(NamedTuple):
    """Rows whose newest token did not exit at the first exit.

    Attributes:
      waiting: bool `[S]`, whether the row is one of them.
      state: of its token after the first exit's blocks, leaves `[S, 1, ...]`.
      sweeps: int32 `[]`, since the first of them began to wait.
      unfilled: with "propagate", what the next fill computes; None otherwise.
    """

    waiting: Bool[Array, "S"]
    state: Rows
    sweeps: Int[Array, ""]
    unfilled: Unfilled | None

    def without(self, rows: Bool[Array, "S"], room: int) -> "Parked":
        """These rows begin another request."""
        unfilled = self.unfilled
        if unfilled is not None:
            at = jnp.where(rows[:, None], room, unfilled.positions)
            unfilled = unfilled._replace(positions=at)
        return self._replace(waiting=self.waiting & ~rows, unfilled=unfilled)


def none_parked(
    exits: ExitPlan | None, decoder: Decoder, weights: PyTree, slots: int, room: int
) -> Parked | None:
    """No row waits; None where no row ever does."""
    if exits is None or not exits.park:
        return None
    tokens = jnp.zeros((slots, 1), jnp.int32)
    state = jax.eval_shape(decoder.embed, weights, tokens, tokens)
    zeros = lambda width: jax.tree.map(
        lambda a: jnp.zeros((slots, width, *a.shape[2:]), a.dtype), state
    )
    unfilled = None
    if exits.cache == "propagate":
        at = jnp.full((slots, exits.park), room, jnp.int32)
        unfilled = Unfilled(zeros(exits.park), at, jnp.int32(0))
    return Parked(jnp.zeros(slots, bool), zeros(1), jnp.int32(0), unfilled)
