"""The decoder-only transformer over a cache, as `dynexit.core.decoder.Decoder` asks for."""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dynexit.core.meshes import refuse_undivided
from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, PyTree
from dynexit.core.stacking import unstack
from dynexit.layers.grouped_attention import attend_grouped, write_tokens
from dynexit.layers.panels import WIDTH
from dynexit.layers.projection import for_decoding, project, transposed
from dynexit.models.language.block import KeyValue, Places, Query, keys_values, normed, run_block
from dynexit.models.language.frequencies import frequencies
from dynexit.models.language.settings import CausalLM

Pair: TypeAlias = tuple[Float[Array, "B kv T d"], Float[Array, "B kv T d"]]

WIDTHS = {"key": 32, "value": 8, "up": 8}  # of panels: those that read the same input differ


@dataclasses.dataclass(frozen=True)
class TransformerDecoder:
    """See `dynexit.core.decoder.Decoder`; the cache is one pair `[B, kv, T, d]` a block.

    Attributes:
      settings: of the model.
      vocabulary: V.
    """

    settings: CausalLM
    vocabulary: int

    @property
    def depth(self) -> int:
        """N."""
        return self.settings.depth

    @property
    def context(self) -> int | None:
        """The largest number of positions."""
        return self.settings.context

    def unstack(self, params: PyTree) -> PyTree:
        """The parameters with a list of blocks, and matrices in the layout of decoding.

        The embedding is kept once, transposed if it is the output matrix too.
        """
        if isinstance(params["blocks"], list):
            return params
        blocks = [decoding_block(block) for block in unstack(params["blocks"])]
        embed, head = dict(params["embed"]), dict(params["head"])
        if self.settings.tied:
            embed["transposed"] = jnp.transpose(embed.pop("tokens"))
        else:
            head["logits"] = transposed(head["logits"])
        return {"embed": embed, "blocks": blocks, "head": head}

    def with_head(self, weights: PyTree, head: PyTree) -> PyTree:
        """The weights with a draft head: "block", and "norm" in place of the final norm."""
        blocks = [*weights["blocks"], decoding_block(head["block"])]
        norm = head.get("norm", weights["head"]["norm"])
        return {**weights, "blocks": blocks, "draft": {**weights["head"], "norm": norm}}

    def draft_weights(self, weights: PyTree) -> PyTree:
        """The weights with which `logits` reads the draft head."""
        return {**weights, "head": weights["draft"]}

    def empty(self, weights: PyTree, rows: int, room: int) -> tuple[Pair, ...]:
        """Zeros."""
        s, dtype = self.settings, jax.tree.leaves(weights["embed"])[0].dtype
        make = lambda: jnp.zeros((rows, s.kv, room, s.head), dtype)
        return tuple((make(), make()) for _ in weights["blocks"])

    def embed(
        self, weights: PyTree, tokens: Int[AnyArray, "b s"], positions: Int[Array, "b s"]
    ) -> Places:
        """scale Emb(x), with learned positions added where there are any."""
        s, embed = self.settings, weights["embed"]
        if "transposed" in embed:
            x = jnp.moveaxis(embed["transposed"][:, tokens], 0, -1)
        else:
            x = embed["tokens"][tokens]
        x = x if s.embed_scale == 1 else x * jnp.asarray(s.embed_scale, x.dtype)
        if s.positions == "learned":
            x = x + embed["positions"].at[positions].get(mode="clip")
        return x

    def blocks(
        self,
        weights: PyTree,
        first: int,
        last: int,
        state: Places,
        positions: Int[Array, "b s"],
        cache: tuple[Pair, ...],
        rows: Int[Array, "b"] | None = None,
        present: Int[Array, "b T"] | None = None,
    ) -> tuple[Places, tuple[Pair, ...]]:
        """Runs the blocks first..last-1."""
        s, pairs = self.settings, list(cache)
        used = filled_places(positions, cache)
        for i in range(first, last):

            def mix(q: Query, k: KeyValue, v: KeyValue, i: int = i) -> tuple[Query, Pair]:
                pair = written(pairs[i], k, v, positions, rows)
                look = lambda a: a if rows is None else a.at[rows].get(mode="clip")
                mask = visible(positions, pair[0].shape[2], s.window_of(self._kind(i)))
                if present is not None:
                    mask = mask & (present > i)[:, None]
                scale, cap = s.attention_scale, s.attention_cap
                k, v = look(pair[0]), look(pair[1])
                return attend_grouped(q, k, v, mask, scale, cap, used), pair

            block, rates = weights["blocks"][i], frequencies(s, self._kind(i))
            state, pairs[i] = run_block(s, block, rates, state, positions, mix)
        return state, tuple(pairs)

    def fill(
        self,
        weights: PyTree,
        first: int,
        last: int,
        state: Places,
        positions: Int[Array, "b s"],
        cache: tuple[Pair, ...],
        rows: Int[Array, "b"] | None = None,
    ) -> tuple[Pair, ...]:
        """Writes the keys and values that the blocks first..last-1 compute from `state`."""
        s, pairs = self.settings, list(cache)
        for i in range(first, last):
            rates = frequencies(s, self._kind(i))
            _, k, v = keys_values(s, weights["blocks"][i], rates, state, positions)
            pairs[i] = written(pairs[i], k, v, positions, rows)
        return tuple(pairs)

    def _kind(self, block: int) -> int:
        """The block whose window and frequencies a block has: its own, or for a draft head, whose
        index is N, those of the last block.
        """
        return min(block, self.depth - 1)

    def logits(self, weights: PyTree, state: Places) -> Float[Array, "b s V"]:
        """The final norm and the output matrix, in the type of the parameters."""
        return read_logits(self.settings, weights, state)

    def specs(self, weights: PyTree, size: int) -> tuple[PyTree, PartitionSpec]:
        """How weights and a cache are split along the mesh axis "model": by heads and inner width.

        Args:
          weights: of `unstack`.
          size: devices along the axis.

        Returns:
          The specs of the weights, and that of a cache `[B, kv, T, d]`.

        Raises:
          ValueError: the heads or the inner width are no multiple of `size`.
        """
        s = self.settings
        refuse_undivided(size, heads=s.heads, kv_heads=s.kv, hidden=s.inner)

        def spec(path: Any, leaf: Array) -> PartitionSpec:
            names = [str(getattr(key, "key", "")) for key in path]
            part, kind = names[-2], names[-1]
            if part in ("query", "key", "value", "up", "gate"):
                return PartitionSpec(*[None] * (leaf.ndim - 1), "model")
            if part in ("out", "down") and kind == "transposed":
                return PartitionSpec("model", None)
            return PartitionSpec()

        cache = PartitionSpec(None, "model", None, None)
        return jax.tree_util.tree_map_with_path(spec, weights), cache

    def logits_among(
        self, weights: PyTree, state: Places, tokens: Int[Array, "M"]
    ) -> Float[Array, "b s M"]:
        """The logits of some tokens."""
        return read_logits(self.settings, weights, state, tokens)


def read_logits(
    s: CausalLM, params: PyTree, state: Float[Array, "*rows D"], among: PyTree = None
) -> Float[Array, "*rows V"]:
    """cap tanh(W norm(h) / cap), or W norm(h) without a cap.

    Args:
      s: the settings.
      params: with "embed" and "head".
      state: `[..., D]`.
      among: integers `[M]`, the tokens whose logits are wanted; None for all V.
    """
    matrix = _output_matrix(s, params)
    if among is not None:
        matrix = {k: m[:, among] if k == "transposed" else m[among] for k, m in matrix.items()}
    z = project(normed(s, params["head"]["norm"], state), matrix)
    return z if s.logits_cap is None else s.logits_cap * jnp.tanh(z / s.logits_cap)


def decoding_block(block: PyTree) -> PyTree:
    """The parameters of one block with its matrices in the layout of decoding."""
    return {name: for_decoding(part, WIDTHS.get(name, WIDTH)) for name, part in block.items()}


def _output_matrix(s: CausalLM, params: PyTree) -> PyTree:
    if not s.tied:
        return params["head"]["logits"]
    embed = params["embed"]
    given = "transposed" if "transposed" in embed else "tokens"
    return {"weight" if given == "tokens" else given: embed[given]}


def visible(positions: Int[Array, "#b s"], room: int, window: int | None) -> Bool[Array, "#b s T"]:
    """Which entries of a cache a token at `positions` attends to.

    Example:
      >>> visible(jnp.array([[2]]), 4, 2)[0, 0].tolist()
      [False, True, True, False]
    """
    entry, at = jnp.arange(room)[None, None], positions[..., None]
    return (entry <= at) if window is None else (entry <= at) & (entry > at - window)


def filled_places(positions: Int[Array, "b s"], cache: tuple[Pair, ...]) -> Int[Array, ""]:
    """One more than the last position of a token that the cache has room for."""
    room = cache[0][0].shape[2]
    return jnp.where(positions < room, positions + 1, 0).max()


def written(
    pair: Pair,
    k: KeyValue,
    v: KeyValue,
    positions: Int[Array, "b s"],
    rows: Int[Array, "b"] | None,
) -> Pair:
    """The cache of one block with the keys and values of tokens; those out of range are dropped."""
    to = (jnp.arange(k.shape[0]) if rows is None else rows)[:, None]
    put = lambda a, new: write_tokens(a, (to, positions), new)
    return put(pair[0], k), put(pair[1], v)
