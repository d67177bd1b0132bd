"""What tokens with exits took: blocks, probes of the criterion, and the cache of skipped blocks."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import shapes
from dynexit.core.cost import flops_of
from dynexit.core.decoder import Decoder
from dynexit.core.shapes import Array, Bool, HostArray, Int, PyTree
from dynexit.decoding.plan import Carry, Given, Plan
from dynexit.decoding.requests import Counts

_known: dict[tuple[Decoder, int, int], tuple[float, float, float]] = {}


class Work(NamedTuple):
    """Counts over tokens, and what each costs in blocks. They do not depend on the batch.

    A block of one token is the unit: its FLOPs, with attention to all positions of the cache.

    Attributes:
      tokens: that exited.
      blocks: that these tokens ran.
      probes: exits, summed over the tokens, at which the criterion was scored, the last included.
      readouts: logits of the whole vocabulary: one a token, and more if the criterion reads them.
      fills: blocks whose keys and values were computed for tokens that exited before: "propagate".
      reruns: blocks that ran again for tokens that had exited before: "recompute".
      readout_cost: blocks that a readout costs.
      fill_cost: blocks that a fill costs.
      among_cost: blocks that the logits of `Exits.among` cost, which every probe computes.

    Example:
      >>> work = Work(4, 8, 6, 6, 8, 0, readout_cost=0.5, fill_cost=0.25, among_cost=0.0)
      >>> work.mean_depth, work.probe_blocks, work.cache_blocks
      (2.0, 0.25, 0.5)
    """

    tokens: int
    blocks: int
    probes: int
    readouts: int
    fills: int
    reruns: int
    readout_cost: float
    fill_cost: float
    among_cost: float

    @property
    def mean_depth(self) -> float:
        """Blocks that a token ran, on average."""
        return self.blocks / max(1, self.tokens)

    @property
    def probe_blocks(self) -> float:
        """Cost of the logits beyond one readout a token, in blocks a token."""
        more = (self.readouts - self.tokens) * self.readout_cost + self.probes * self.among_cost
        return more / max(1, self.tokens)

    @property
    def cache_blocks(self) -> float:
        """Cost of the cache of skipped blocks, in blocks a token."""
        return (self.fills * self.fill_cost + self.reruns) / max(1, self.tokens)


def counted(
    plan: Plan,
    carry: Carry,
    live: Bool[Array, "S"],
    depth: Int[Array, "S"],
    readouts: Int[Array, "S"],
    again: Int[Array, "S"] | None = None,
) -> Carry:
    """The carry before a round's tokens are recorded, with their counts.

    Args:
      plan, carry: of the program.
      live: rows whose token exited.
      depth: blocks of the token.
      readouts: logits of the whole vocabulary that were computed for it.
      again: further tokens of the row that ran these blocks again; None for none.
    """
    exits, blocks = plan.exits, plan.decoder.depth
    assert exits is not None
    probes = exit_of(plan, depth) + 1
    none = jnp.zeros_like(depth)
    fills = blocks - depth if exits.cache == "propagate" else none
    more = Counts(probes, readouts, fills, none if again is None else again * depth)
    add = lambda a, b: a.at[carry.of].add(jnp.where(live, b, 0), mode="drop")
    counts = jax.tree.map(add, carry.requests.counts, more)
    return carry._replace(requests=carry.requests._replace(counts=counts))


def exit_of(plan: Plan, depth: Int[Array, "S"]) -> Int[Array, "S"]:
    """The index of the exit after a number of blocks."""
    assert plan.exits is not None
    after = jnp.array(plan.exits.after, jnp.int32)
    return (depth[:, None] > after[None]).sum(1, dtype=jnp.int32)


def work_of(plan: Plan, given: Given, rows: Iterable[tuple[Int[HostArray, "_"], Counts]]) -> Work:
    """The work of some requests, given the depths of their tokens and their counts."""
    pairs = list(rows)
    depths = np.concatenate([depth for depth, _ in pairs]) if pairs else np.zeros(0, np.int32)
    total = lambda name: sum(int(getattr(counts, name)) for _, counts in pairs)
    many = 0 if given.among is None else given.among.size
    readout, fill, among = costs_in_blocks(plan.decoder, given.weights, plan.room, many)
    return Work(
        tokens=len(depths),
        blocks=int(depths.sum()),
        probes=total("probes"),
        readouts=total("readouts"),
        fills=total("fills"),
        reruns=total("reruns"),
        readout_cost=readout,
        fill_cost=fill,
        among_cost=among,
    )


def costs_in_blocks(
    decoder: Decoder, weights: PyTree, room: int, among: int = 0
) -> tuple[float, float, float]:
    """FLOPs of a readout, a fill of one block and a short readout over those of a block.

    All are for one token.

    Args:
      decoder: the model.
      weights: of `Decoder.unstack`.
      room: positions of the cache, all of which the block attends to.
      among: tokens of the short readout; 0 for none.

    Example:
      >>> import dynexit as dx
      >>> model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(50), 50)
      >>> weights = model.decoder.unstack(model.init(jax.random.key(0)))
      >>> readout, fill, short = costs_in_blocks(model.decoder, weights, 32, among=5)
      >>> 0 < fill < 1 and 0 < short < readout < 1
      True
    """
    key = decoder, room, among
    if key not in _known:
        weights, at = shapes(weights), jax.ShapeDtypeStruct((1, 1), jnp.int32)
        state = jax.eval_shape(decoder.embed, weights, at, at)
        cache = jax.eval_shape(lambda w: decoder.empty(w, 1, room), weights)
        block = lambda w, h, at, cache: decoder.blocks(w, 0, 1, h, at, cache)[0]
        fill = lambda w, h, at, cache: decoder.fill(w, 0, 1, h, at, cache)
        unit = flops_of(block, weights, state, at, cache)
        found = [
            flops_of(decoder.logits, weights, state),
            flops_of(fill, weights, state, at, cache),
        ]
        tokens = jax.ShapeDtypeStruct((among,), jnp.int32)
        found.append(flops_of(decoder.logits_among, weights, state, tokens) if among else 0.0)
        readout, filling, short = (flops / unit for flops in found)
        _known[key] = readout, filling, short
    return _known[key]
