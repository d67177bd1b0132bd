"""Recurrent depth as `dynexit.core.decoder.Decoder` asks for: a block is one iteration of the core.

The prelude runs before the first iteration. The coda, which attends to earlier tokens too, runs
after the last one of every call, so that logits can be read there; what it keeps of a token is
overwritten once the token has run further iterations.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from dynexit.core.meshes import refuse_undivided
from dynexit.core.shapes import AnyArray, Array, Float, Int, PyTree
from dynexit.layers.attention import Projected
from dynexit.layers.grouped_attention import attend_grouped, write_tokens
from dynexit.models.language.decoder import visible
from dynexit.models.recurrent.recurrent_network import Mix, Network, Pair


class Cache(NamedTuple):
    """Keys and values; each part has a pair of `[B, slots, heads, T, d]` for each of its blocks.

    Attributes:
      prelude, coda: with one slot.
      core: with one slot for each iteration.
    """

    prelude: tuple[Pair, ...]
    core: tuple[Pair, ...]
    coda: tuple[Pair, ...]


@dataclasses.dataclass(frozen=True)
class RecurrentDecoder:
    """See `dynexit.core.decoder.Decoder`.

    A state is a dict of "input", the prelude's output, "h", that of the core, and "read", that of
    the coda, each `[b, s, D]`.

    Attributes:
      network: the functions of the model.
      depth: N, iterations of every token.
    """

    network: Network
    depth: int

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.network.vocabulary

    @property
    def context(self) -> None:
        """No limit."""

    def unstack(self, params: PyTree) -> PyTree:
        """The parameters with a list of blocks in place of every stack."""
        return params if isinstance(params["prelude"], list) else self.network.unstack(params)

    def with_head(self, weights: PyTree, head: PyTree) -> PyTree:
        """Refused: the coda reads every iteration.

        Raises:
          ValueError: always.
        """
        raise ValueError("`draft.head` must be None with recurrent depth, which drafts by its coda")

    def draft_weights(self, weights: PyTree) -> PyTree:
        """The weights, as there are no draft heads."""
        return weights

    def empty(self, weights: PyTree, rows: int, room: int) -> Cache:
        """Zeros."""
        return Cache(*self.network.empty(weights, rows, self.depth, room))

    def embed(
        self, weights: PyTree, tokens: Int[AnyArray, "b s"], positions: Int[Array, "b s"]
    ) -> PyTree:
        """gamma Emb(x), which the prelude has not read, and zeros."""
        x = self.network.embedded(weights, tokens)
        return {"input": x, "h": jnp.zeros_like(x), "read": jnp.zeros_like(x)}

    def blocks(
        self,
        weights: PyTree,
        first: int,
        last: int,
        state: PyTree,
        positions: Int[Array, "b s"],
        cache: Cache,
        rows: Int[Array, "b"] | None = None,
        present: Int[Array, "b T"] | None = None,
    ) -> tuple[PyTree, Cache]:
        """Runs the iterations first..last-1, and the coda after them."""
        if first == last:
            return state, cache
        mix = functools.partial(_cached, positions, rows)
        state, cache = self._begun(weights, first, state, positions, cache, mix(jnp.arange(1)))

        def iterate(i: Array, carry: tuple[Array, tuple[Pair, ...]]) -> tuple[Array, PyTree]:
            h, core = carry
            return self.network.think(
                weights, h, state["input"], positions, mix(i[None], present), core
            )

        h, core = lax.fori_loop(first, last, iterate, (state["h"], cache.core))
        read, coda = self.network.answer(weights, h, positions, mix(jnp.arange(1)), cache.coda)
        return {**state, "h": h, "read": read}, cache._replace(core=core, coda=coda)

    def fill(
        self,
        weights: PyTree,
        first: int,
        last: int,
        state: PyTree,
        positions: Int[Array, "b s"],
        cache: Cache,
        rows: Int[Array, "b"] | None = None,
    ) -> Cache:
        """Runs one iteration, whose keys and values are those of the iterations first..last-1, and
        after the last iteration the coda.
        """
        if first == last:
            return cache
        mix = functools.partial(_cached, positions, rows)
        state, cache = self._begun(weights, first, state, positions, cache, mix(jnp.arange(1)))
        several = mix(jnp.arange(first, last))
        h, core = self.network.think(
            weights, state["h"], state["input"], positions, several, cache.core
        )
        cache = cache._replace(core=core)
        if last < self.depth:
            return cache
        _, coda = self.network.answer(weights, h, positions, mix(jnp.arange(1)), cache.coda)
        return cache._replace(coda=coda)

    def _begun(
        self,
        weights: PyTree,
        first: int,
        state: PyTree,
        positions: Int[Array, "b s"],
        cache: Cache,
        mix: Mix,
    ) -> tuple[PyTree, Cache]:
        """The state after the prelude, which runs before iteration 0."""
        if first:
            return state, cache
        e, prelude = self.network.begin(weights, state["input"], positions, mix, cache.prelude)
        return {**state, "input": e}, cache._replace(prelude=prelude)

    def logits(self, weights: PyTree, state: PyTree) -> Float[Array, "b s V"]:
        """Emb u of the coda's u."""
        return self.network.logits(weights, state["read"])

    def logits_among(
        self, weights: PyTree, state: PyTree, tokens: Int[Array, "M"]
    ) -> Float[Array, "b s M"]:
        """The logits of some tokens."""
        return state["read"] @ weights["embed"][tokens].T

    def specs(self, weights: PyTree, size: int) -> tuple[PyTree, PartitionSpec]:
        """How weights and a cache are split along the mesh axis "model": by heads and inner width.

        Raises:
          ValueError: the heads or the inner width are no multiple of `size`.
        """
        network = self.network
        refuse_undivided(size, heads=network.heads, hidden=4 * network.width)

        def spec(path: Any, leaf: Array) -> PartitionSpec:
            part = getattr(path[-2], "key", "") if len(path) > 1 else ""
            axes: list[str | None] = [None] * leaf.ndim
            if part in ("query", "key", "value"):  # [D, heads, d], and biases [heads, d]
                axes[-2] = "model"
            elif part in ("up", "gate"):  # [D, 4D]
                axes[-1] = "model"
            elif part in ("out", "down"):  # [heads, d, D] and [4D, D]
                axes[0] = "model"
            return PartitionSpec(*axes)

        cache = PartitionSpec(None, None, "model", None, None)
        return jax.tree_util.tree_map_with_path(spec, weights), cache


def _cached(
    positions: Int[Array, "b s"],
    rows: Int[Array, "b"] | None,
    slots: Int[Array, "n"],
    present: Int[Array, "b T"] | None = None,
) -> Mix:
    """How tokens attend: they are written to some slots, then the first of these is read."""

    def mix(past: Pair, q: Projected, k: Projected, v: Projected) -> tuple[Projected, Pair]:
        to = (jnp.arange(k.shape[0]) if rows is None else rows)[:, None, None]
        at = to, slots[None, None], positions[..., None]
        put = lambda a, new: write_tokens(a, at, new[:, :, None])
        pair = put(past[0], k), put(past[1], v)
        if rows is None:
            look = lambda a: lax.dynamic_index_in_dim(a, slots[0], 1, keepdims=False)
        else:
            look = lambda a: a.at[rows, slots[0]].get(mode="clip")
        mask = visible(positions, pair[0].shape[3], None)
        if present is not None:
            mask = mask & (present > slots[0])[:, None]
        return attend_grouped(q, look(pair[0]), look(pair[1]), mask), pair

    return mix
