"""The vision transformer against attention written out token by token and head by head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import apply

import dynexit as dx
from dynexit.models.vision.settings import Vit

IMAGE, PATCH, WIDTH, HEADS, CLASSES, ROWS = (8, 12, 2), 4, 8, 2, 5, 3
TOKENS = (8 // PATCH) * (12 // PATCH)


def model(**changes):
    settings = dict(patch=PATCH, width=WIDTH, depth=2, heads=HEADS) | changes
    return Vit(**settings).build(IMAGE, CLASSES)


def scattered():
    """Parameters away from their initial zeros and ones, so that no bias or scale is idle."""
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: np.asarray(a) + np.float32(0.2) * draw.standard_normal(a.shape, np.float32),
        model().init(jax.random.key(0)),
    )


def norm(x, p):
    p = p["LayerNorm_0"]
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
    """Heads and their channels are one axis here."""
    return x @ p["kernel"].reshape(len(x), -1) + p["bias"].ravel()


def gelu(x):
    """The tanh form."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def block_of_one_image(x, p):
    """Tokens `[L, D]`, one after the other."""
    size = WIDTH // HEADS
    projected = [dense(norm(token, p["norm1"]), p["qkv"]) for token in x]
    middle = []
    for t in range(TOKENS):
        mixed = []
        for head in range(HEADS):
            part = lambda which, token, h=head: projected[token][
                which * WIDTH + h * size : which * WIDTH + (h + 1) * size
            ]
            scores = np.stack(
                [(part(0, t) * part(1, other)).sum() / size**0.5 for other in range(TOKENS)]
            )
            share = np.exp(scores) / np.exp(scores).sum()
            mixed.append(sum(share[other] * part(2, other) for other in range(TOKENS)))
        middle.append(x[t] + dense(np.concatenate(mixed), p["out"]))
    return np.stack(
        [m + dense(gelu(dense(norm(m, p["norm2"]), p["up"])), p["down"]) for m in middle]
    )


def test_a_block_is_attention_then_mlp():
    params = scattered()
    step = model().steps(params)
    tokens = jax.random.normal(jax.random.key(3), (2, TOKENS, WIDTH))
    for i in range(2):
        weights = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
        state, logits = apply(step, jnp.int32(i), tokens)
        for b in range(2):
            expected = block_of_one_image(np.asarray(tokens[b]), weights["block"])
            np.testing.assert_allclose(state[b], expected, rtol=1e-4, atol=1e-4)
            read = dense(
                norm(expected.mean(axis=0), weights["head"]["norm"]), weights["head"]["logits"]
            )
            np.testing.assert_allclose(logits[b], read, rtol=1e-4, atol=1e-4)


def test_patches_are_cut_row_by_row_and_get_positions():
    params = scattered()
    images = np.asarray(jax.random.normal(jax.random.key(4), (ROWS, *IMAGE)))
    tokens = model().embed(params, images)
    assert tokens.shape == (ROWS, TOKENS, WIDTH)
    p = params["embed"]
    for b in range(ROWS):
        for t in range(TOKENS):
            top, left = t // 3 * PATCH, t % 3 * PATCH
            patch = images[b, top : top + PATCH, left : left + PATCH].ravel()
            np.testing.assert_allclose(
                tokens[b, t], dense(patch, p["patches"]) + p["positions"][t], rtol=1e-5, atol=1e-5
            )


def test_without_positions_the_order_of_patches_is_not_seen():
    """Attention and mean pooling are blind to order; positions alone tell the network where a patch
    was.
    """
    network, params = model(), scattered()
    images = jax.random.normal(jax.random.key(5), (ROWS, *IMAGE))
    turned = jnp.roll(images, PATCH, axis=2)
    run = jax.jit(lambda p, x: dx.run_all(network.steps(p), network.embed(p, x), network.depth))
    assert float(jnp.abs(run(params, images) - run(params, turned)).max()) > 1e-2
    blind = params | {"embed": params["embed"] | {"positions": jnp.zeros((TOKENS, WIDTH))}}
    np.testing.assert_allclose(run(blind, images), run(blind, turned), rtol=1e-4, atol=1e-4)


def test_parameters_are_counted():
    shapes = jax.eval_shape(model(depth=3).init, jax.random.key(0))
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    block = (
        2 * 2 * WIDTH + (3 * WIDTH + 1 * WIDTH + 4 * WIDTH) * (WIDTH + 1) + WIDTH * (4 * WIDTH + 1)
    )
    assert count(shapes["blocks"]["block"]) == 3 * block
    assert count(shapes["blocks"]["head"]) == 3 * (2 * WIDTH + CLASSES * (WIDTH + 1))
    assert count(shapes["embed"]) == WIDTH * (PATCH * PATCH * 2 + 1) + TOKENS * WIDTH


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"patch": 5}, "patch and stride must cover an image of 8 x 12 pixels"),
        ({"patch": 9}, "patch and stride must cover an image of 8 x 12 pixels"),
        ({"heads": 3}, "width must be a multiple of heads, got 8 and 3"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"width": 8.0}, "width must be an integer, got 8.0"),
        ({"heads": True}, "heads must be an integer, got True"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
    ],
)
def test_what_is_refused(changes, words):
    with pytest.raises(ValueError, match=f"`Vit`: {words}"):
        model(**changes)
