"""What a round knows of its rows, and the tokens that it verifies."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Bool, Float, Int, Key, PyTree
from dynexit.decoding.plan import Carry
from dynexit.decoding.sampling import Rules


class Rows(NamedTuple):
    """What a round knows of the requests in its slots.

    Attributes:
      live: bool `[S]`, whether the slot has a request.
      text: int32 `[S, T]`, its tokens.
      known: int32 `[S]`, K.
      filled: int32 `[S]`, F.
      rules: how its tokens are drawn.
      keys: its key.
    """

    live: Bool[Array, "S"]
    text: Int[Array, "S T"]
    known: Int[Array, "S"]
    filled: Int[Array, "S"]
    rules: Rules
    keys: Key[Array, "S"]


class Drafted(NamedTuple):
    """The tokens that a round verifies.

    Attributes:
      tokens: int32 `[S, w]`, those at places F..F+d.
      many: int32 `[S]`, how many follow the first.
      state: of the tokens, after block E.
      p: float32 `[S, d, V]`, the distribution of each draft; None where none is sampled.
    """

    tokens: Int[Array, "S w"]
    many: Int[Array, "S"]
    state: PyTree
    p: Float[Array, "S d V"] | None


def rows_of(carry: Carry) -> Rows:
    """The requests in the slots; an empty slot has any request's tokens."""
    requests, of = carry.requests, carry.of
    look = lambda a: a.at[of].get(mode="clip")
    live = of < requests.length.shape[0]
    rules = jax.tree.map(look, requests.rules)
    keys = jax.random.wrap_key_data(look(requests.keys))
    return Rows(live, look(requests.tokens), look(requests.length), carry.filled, rules, keys)


def token_keys(keys: Key[Array, "S"], places: Int[Array, "S w"], use: int) -> Key[Array, "S w"]:
    """A key for every place of every row; the same whatever the batch."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
    at = fold(keys, places)
    return jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(at, jnp.int32(use))
