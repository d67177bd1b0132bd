"""The contract between autoregressive models and `dx.decoding`."""

from typing import Protocol, TypeAlias, runtime_checkable

from jax.sharding import PartitionSpec

from dynexit.core.shapes import AnyArray, Array, Float, Int, PyTree, Rows

Cache: TypeAlias = PyTree  # leaves `[B, ...]`, one entry a position


@runtime_checkable
class Decoder(Protocol):
    """What an autoregressive model offers to `dx.decoding.generate`.

    A decoder is hashable and holds no arrays. Rows are independent. Every row has positions of its
    own: what is written to the cache at position p is read by later positions of that row alone,
    and what lies after a row's last position is never read, so nothing is ever removed from it.

    Attributes:
      vocabulary: V; token ids are 0..V-1.
      depth: N, blocks, with an exit after each.
      context: the largest number of positions of a row, or None for no limit.
    """

    @property
    def vocabulary(self) -> int:
        """V."""
        ...

    @property
    def depth(self) -> int:
        """N."""
        ...

    @property
    def context(self) -> int | None:
        """The largest number of positions, or None."""
        ...

    def unstack(self, params: PyTree) -> PyTree:
        """The weights as the other methods take them, each block's in arrays of its own.

        Call it once, outside of the compiled loop: a traced index into stacked weights copies them.
        """
        ...

    def with_head(self, weights: PyTree, head: PyTree) -> PyTree:
        """The weights with a draft head, which the other methods run as the block with index N.

        Args:
          weights: of `unstack`.
          head: a dict of "block", the parameters of one more block, and optionally "norm", those of
            the norm between it and the output matrix.
        """
        ...

    def draft_weights(self, weights: PyTree) -> PyTree:
        """The weights of `with_head`, with which `logits` reads the draft head."""
        ...

    def empty(self, weights: PyTree, rows: int, room: int) -> Cache:
        """A cache for `rows` rows of up to `room` positions."""
        ...

    def embed(
        self, weights: PyTree, tokens: Int[AnyArray, "b s"], positions: Int[Array, "b s"]
    ) -> Rows:
        """The state before block 0, leaves `[b, s, ...]`."""
        ...

    def blocks(
        self,
        weights: PyTree,
        first: int,
        last: int,
        state: Rows,
        positions: Int[Array, "b s"],
        cache: Cache,
        rows: Int[Array, "b"] | None = None,
        present: Int[Array, "b T"] | None = None,
    ) -> tuple[Rows, Cache]:
        """The state after the blocks first..last-1, and the cache with what they wrote.

        Args:
          weights: of `unstack`.
          first, last: Python integers.
          state: leaves `[b, s, ...]`.
          positions: where keys and values are written before they are read; those at or beyond
            the room are dropped.
          cache: of all B rows.
          rows: the row of the cache of each of the b rows, B or more for a padding row; None for
            rows 0..B-1.
          present: how many blocks have run each position, where later ones must not read it; None
            for all.
        """
        ...

    def fill(
        self,
        weights: PyTree,
        first: int,
        last: int,
        state: Rows,
        positions: Int[Array, "b s"],
        cache: Cache,
        rows: Int[Array, "b"] | None = None,
    ) -> Cache:
        """Writes what the blocks first..last-1 keep of `state` as if each of them received it.

        This is the cache of tokens that exited after block `first`. Arguments as in `blocks`.
        """
        ...

    def logits(self, weights: PyTree, state: Rows) -> Float[Array, "b s V"]:
        """Logits of the next token, read from the state after any block."""
        ...

    def specs(self, weights: PyTree, size: int) -> tuple[PyTree, PartitionSpec]:
        """How weights, and the leaves of a cache, are split over the mesh axis "model" of a size.

        Raises:
          ValueError: the size does not divide what is split.
        """
        ...

    def logits_among(
        self, weights: PyTree, state: Rows, tokens: Int[Array, "M"]
    ) -> Float[Array, "b s M"]:
        """The logits of some tokens, at the cost of these alone."""
        ...
