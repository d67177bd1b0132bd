"""Augmentation against loops over single images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.data.augment import chain, cutout, random_crop, random_flip, to_float


def images(batch=24, height=6, width=5, channels=2):
    return (
        np.random.default_rng(0).integers(1, 256, (batch, height, width, channels)).astype(np.uint8)
    )


def shifts(image, padding):
    """Every crop of the padded image."""
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, channels), image.dtype)
    padded[padding : padding + height, padding : padding + width] = image
    span = range(2 * padding + 1)
    return {(i, j): padded[i : i + height, j : j + width] for i in span for j in span}


def test_crops_are_shifts_and_all_of_them_occur():
    given = images(batch=400, height=4, width=3)
    cropped = np.asarray(jax.jit(random_crop, static_argnums=2)(jax.random.key(0), given, 1))
    assert cropped.dtype == np.uint8 and cropped.shape == given.shape
    seen = set()
    for before, after in zip(given, cropped, strict=True):
        matching = [
            corner for corner, crop in shifts(before, 1).items() if np.array_equal(crop, after)
        ]
        assert matching
        seen.update(matching)
    assert len(seen) == 9


def test_no_padding_changes_nothing():
    np.testing.assert_array_equal(random_crop(jax.random.key(3), images(), 0), images())


def test_about_half_are_mirrored_and_the_rest_untouched():
    given = images(batch=400)
    flipped = np.asarray(jax.jit(random_flip)(jax.random.key(1), given))
    mirrored = [
        np.array_equal(after, before[:, ::-1]) for before, after in zip(given, flipped, strict=True)
    ]
    kept = [np.array_equal(after, before) for before, after in zip(given, flipped, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 150 < sum(mirrored) < 250  # five standard deviations


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_cutout_blanks_one_square_and_no_more(size):
    given = images(batch=60)
    cut = np.asarray(jax.jit(cutout, static_argnums=2)(jax.random.key(2), given, size))
    seen = set()
    for before, after in zip(given, cut, strict=True):
        matching = []
        for row in range(6):
            for column in range(5):
                wanted = before.copy()
                top, left = row - size // 2, column - size // 2
                wanted[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
                if np.array_equal(wanted, after):
                    matching.append((row, column))
        assert matching
        seen.add(matching[0])
    assert len(seen) > 1 or size == 9


@pytest.mark.parametrize(
    "augment",
    [functools.partial(random_crop, padding=2), random_flip, functools.partial(cutout, size=2)],
)
def test_the_key_decides_and_examples_have_their_own_draws(augment):
    alike = jnp.broadcast_to(jnp.asarray(images(batch=1)), (32, 6, 5, 2))
    one, again, other = (augment(jax.random.key(seed), alike) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len({row.tobytes() for row in np.asarray(one)}) > 1


def test_chain_applies_from_left_to_right_with_keys_of_their_own():
    given = images(batch=64)
    both = jax.jit(chain(random_flip, random_flip))(jax.random.key(0), given)
    assert not np.array_equal(both, given)  # one key for both would undo every mirror
    order = chain(lambda key, x: x + 1, lambda key, x: x * 2)
    np.testing.assert_array_equal(
        order(jax.random.key(0), jnp.ones((1, 1, 1, 1))), np.full((1, 1, 1, 1), 4.0)
    )


def test_to_float_scales_each_channel():
    given = images()
    scaled = jax.jit(functools.partial(to_float, maximum=255.0, mean=(0.25, 0.5), std=(0.5, 2.0)))(
        given
    )
    assert scaled.dtype == jnp.float32
    for channel, (mean, std) in enumerate(((0.25, 0.5), (0.5, 2.0))):
        np.testing.assert_allclose(
            scaled[..., channel], (given[..., channel] / 255.0 - mean) / std, rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(to_float(given, 16.0), given / 16.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: random_crop(jax.random.key(0), jnp.ones((2, 8, 8)), 1),
            r"`images` must have shape \[B, H, W, C\], got \(2, 8, 8\)",
        ),
        (lambda: random_flip(jax.random.key(0), jnp.ones((2, 8))), r"`images` must have shape"),
        (
            lambda: random_crop(jax.random.key(0), jnp.ones((2, 8, 8, 1)), -1),
            "`padding` must be at least 0, got -1",
        ),
        (
            lambda: cutout(jax.random.key(0), jnp.ones((2, 8, 8, 1)), 0),
            "`size` must be at least 1, got 0",
        ),
        (
            lambda: to_float(jnp.ones((2, 3)), 255.0, mean=(0.1, 0.2)),
            r"`mean` must be a number or have shape \(3,\), got \(2,\)",
        ),
        (lambda: to_float(jnp.ones((2, 3)), 255.0, std=0.0), "`std` must be above 0"),
        (lambda: to_float(jnp.ones((2, 3)), 0.0), "`maximum` must be above 0"),
    ],
)
def test_refusals_name_the_argument(call, text):
    with pytest.raises(ValueError, match=text):
        call()
