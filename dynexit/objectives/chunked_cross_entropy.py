"""Cross-entropy of hidden states whose logits are never in memory together."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.checks import positive_integer
from dynexit.core.labels import as_labels, places_counted
from dynexit.core.shapes import AnyArray, Array, Float, Num, Shaped
from dynexit.objectives.multi_exit import of_label, widened

Hidden: TypeAlias = Float[Array, "E B L D"]
Labels: TypeAlias = Sequence[Any] | Num[AnyArray, "B L"]
Read: TypeAlias = Callable[[Float[Array, "B l D"]], Float[Array, "B l V"]]

ENTRIES = 2**22
"""Logits of a chunk, where its size is not given: 16 MiB in float32."""


def chunked_cross_entropy(
    read: Read, hidden: Hidden, labels: Labels, places: int | None = None
) -> Float[Array, "E B"]:
    """Cross-entropy of every exit from its hidden states, a few places at a time.

    l_eb = mean_t -ln softmax(read(h_ebt))[y_bt], over the places t that are not ignored.

    The logits of one chunk of places of one exit are in memory at a time, in the backward pass too,
    which computes them again. Memory therefore depends neither on the number of exits nor, with
    `places` None, on the vocabulary. Equal to `multi_exit_cross_entropy` of all logits, up to
    rounding.

    Args:
      read: the output head, `read(h [B, l, D]) -> logits [B, l, V]`, of each place alone; its
        weights are values that it closes over, and get gradients.
      hidden: h, `[E, B, L, D]`.
      labels: integers `[B, L]`; -1 at ignored places.
      places: of each row in a chunk; None for as many as give 2^22 logits in all rows.

    Returns:
      `[E, B]` in nats, 0 for a row whose places are all ignored; float32, or float64 for float64
      logits.

    Raises:
      TypeError: `labels` are not integers, `places` is no integer.
      ValueError: the shapes do not match, or `places` is below 1.

    Example:
      >>> matrix = jnp.ones((16, 4))  # V=16, D=4
      >>> hidden = jnp.ones((2, 3, 8, 4))  # E=2, B=3, L=8
      >>> losses = chunked_cross_entropy(lambda h: h @ matrix.T, hidden, jnp.zeros((3, 8), int))
      >>> losses.shape, print(f"{losses[0, 0]:.4f}")  # ln 16
      2.7726
      ((2, 3), None)
    """
    classes = jnp.asarray(as_labels(labels))
    if hidden.ndim != 4 or 0 in hidden.shape or classes.shape != hidden.shape[1:3]:
        raise ValueError(
            "`hidden` must have shape [E, B, L, D] without an axis of size 0, and `labels` [B, L], "
            f"got {hidden.shape} and {classes.shape}"
        )
    rows = len(classes)
    if places is None:
        one = jax.ShapeDtypeStruct((rows, 1, hidden.shape[3]), hidden.dtype)
        places = max(1, ENTRIES // jax.eval_shape(read, one).size)
    places = positive_integer(places, "places")

    def of_chunk(h: Array, y: Array) -> Array:  # sums over the places, [B]
        z = widened(read(h))
        loss = jax.nn.logsumexp(z, axis=-1) - of_label(z, y)
        return jnp.where(places_counted(y), loss, 0).sum(axis=1)

    again, y = jax.checkpoint(of_chunk, prevent_cse=False), in_chunks(classes, places, -1)
    counts = jnp.maximum(places_counted(classes).sum(axis=1), 1)

    def of_exit(h: Array) -> Array:
        sums = lax.map(lambda x: again(*x), (in_chunks(h, places), y)).sum(axis=0)
        return sums / counts.astype(sums.dtype)

    return lax.map(of_exit, hidden)


def in_chunks(
    a: Shaped[Array, "B L ..."], places: int, fill: int = 0
) -> Shaped[Array, "n B l ..."]:
    """Values of places in chunks of at most `places`; what is added at the end is `fill`.

    Example:
      >>> in_chunks(jnp.ones((1, 5), jnp.int32), 2, -1)[:, 0].tolist()
      [[1, 1], [1, 1], [1, -1]]
    """
    rows, length = a.shape[:2]
    chunks = -(-length // places)
    size = -(-length // chunks)
    missing = [(0, 0), (0, chunks * size - length), *[(0, 0)] * (a.ndim - 2)]
    padded = jnp.pad(a, missing, constant_values=fill)
    return jnp.moveaxis(padded.reshape(rows, chunks, size, *a.shape[2:]), 1, 0)
