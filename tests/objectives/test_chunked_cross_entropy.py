"""Cross-entropy in chunks against that of all logits at once: values, gradients and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.objectives.chunked_cross_entropy import chunked_cross_entropy
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

E, B, L, D, V = 3, 2, 7, 4, 11
KEYS = jax.random.split(jax.random.key(0), 4)
HIDDEN = jax.random.normal(KEYS[0], (E, B, L, D))
MATRIX = jax.random.normal(KEYS[1], (V, D))
LABELS = jax.random.randint(KEYS[2], (B, L), 0, V).at[0, 2].set(-1).at[1, 5:].set(-1)
UPSTREAM = jax.random.normal(KEYS[3], (E, B))


def read(matrix):
    return lambda h: jnp.tanh(h) @ matrix.T


def plain(hidden, matrix):
    return multi_exit_cross_entropy(read(matrix)(hidden), LABELS)


@pytest.mark.parametrize("places", [1, 3, 7, 50, None])
def test_values_and_gradients_are_those_of_all_logits(places):
    chunked = lambda h, w: chunked_cross_entropy(read(w), h, LABELS, places)
    np.testing.assert_allclose(chunked(HIDDEN, MATRIX), plain(HIDDEN, MATRIX), rtol=1e-5)
    total = lambda f: lambda h, w: (UPSTREAM * f(h, w)).sum()
    found, wanted = (jax.grad(total(f), (0, 1))(HIDDEN, MATRIX) for f in (chunked, plain))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert jnp.abs(b).max() > 0.1


def test_ignored_places_have_no_gradient_and_a_row_of_them_is_zero():
    labels = LABELS.at[1].set(-1)
    total = lambda h: chunked_cross_entropy(read(MATRIX), h, labels, 2).sum()
    assert (chunked_cross_entropy(read(MATRIX), HIDDEN, labels, 2)[:, 1] == 0).all()
    gradient = jax.grad(total)(HIDDEN)
    reached = (gradient != 0).any(axis=(0, 3))
    np.testing.assert_array_equal(reached, labels != -1)


def test_a_label_that_is_no_token_gives_a_nan():
    losses = chunked_cross_entropy(read(MATRIX), HIDDEN, LABELS.at[0, 0].set(V), 2)
    assert jnp.isnan(losses[:, 0]).all() and not jnp.isnan(losses[:, 1]).any()


def test_half_precision_is_summed_in_float32():
    hidden, matrix = HIDDEN.astype(jnp.bfloat16), MATRIX.astype(jnp.bfloat16)
    losses = chunked_cross_entropy(read(matrix), hidden, LABELS, 2)
    assert losses.dtype == jnp.float32
    wanted = multi_exit_cross_entropy(read(matrix)(hidden), LABELS)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


def arrays(jaxpr):
    """The sizes of all arrays of a program, of its inner ones too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for value in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from arrays(inner)


def largest(exits, length, vocabulary, places):
    hidden, matrix = jnp.zeros((exits, B, length, D)), jnp.zeros((vocabulary, D))
    labels = jnp.zeros((B, length), jnp.int32)
    total = lambda h, w: chunked_cross_entropy(read(w), h, labels, places).sum()
    return max(arrays(jax.make_jaxpr(jax.grad(total, (0, 1)))(hidden, matrix).jaxpr))


def test_no_array_holds_the_logits_of_more_than_a_chunk():
    assert largest(4, 64, 1000, 8) == B * 8 * 1000
    assert largest(16, 64, 1000, 8) == largest(4, 128, 1000, 8) == largest(4, 64, 1000, 8)
    assert largest(4, 64, 2**16, None) == B * 32 * 2**16  # 2^22 entries


@pytest.mark.parametrize(
    ("hidden", "labels", "places", "match"),
    [
        (HIDDEN[0], LABELS, None, "`hidden` must have shape"),
        (HIDDEN, LABELS[:1], None, "`labels` .B, L., got"),
        (HIDDEN, LABELS, 0, "`places`"),
        (HIDDEN, LABELS.astype(jnp.float32), None, "`labels` must be integers"),
    ],
)
@pytest.mark.refuses
def test_wrong_arguments_are_refused_by_name(hidden, labels, places, match):
    with pytest.raises((TypeError, ValueError), match=match):
        chunked_cross_entropy(read(MATRIX), hidden, labels, places)
