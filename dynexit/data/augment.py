"""Augmentation and scaling of images on the device: pure functions, one draw per example.

`functools.partial` and `chain` make an experiment's `augment(key, inputs)` and `prepare(inputs)` of
them:

    augment = chain(functools.partial(random_crop, padding=2), random_flip)
    prepare = functools.partial(to_float, maximum=255.0, mean=0.286, std=0.353)
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.shapes import AnyArray, Array, Float, Key, Num, Rows, Shaped

Images: TypeAlias = Shaped[AnyArray, "B H W C"]
PerChannel: TypeAlias = float | Sequence[float] | Num[AnyArray, "C"]
Augment: TypeAlias = Callable[[Key[Array, ""], Rows], Rows]


def random_crop(key: Key[Array, ""], images: Images, padding: int) -> Shaped[Array, "B H W C"]:
    """Shifts each image by up to `padding` pixels in both directions; the border is 0.

    Args:
      key: consumed.
      images: `[B, H, W, C]`, any dtype.
      padding: pixels, from 0.

    Returns:
      `[B, H, W, C]`, same dtype.

    Raises:
      ValueError: `images` not of rank 4, or a negative `padding`.

    Example:
      >>> random_crop(jax.random.key(0), jnp.ones((2, 8, 8, 1)), 2).shape
      (2, 8, 8, 1)

    Source: Lee et al. 2015, "Deeply-Supervised Nets", arXiv 1409.5185 (4 pixels on 32x32 images).
    """
    _check_images(images)
    if padding < 0:
        raise ValueError(f"`padding` must be at least 0, got {padding}.")
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    crop = lambda image, corner: jax.lax.dynamic_slice(
        image, (corner[0], corner[1], 0), images.shape[1:]
    )
    return jax.vmap(crop)(padded, corners)


def random_flip(key: Key[Array, ""], images: Images) -> Shaped[Array, "B H W C"]:
    """Mirrors each image left to right with chance 1/2.

    Args:
      key: consumed.
      images: `[B, H, W, C]`, any dtype.

    Returns:
      `[B, H, W, C]`, same dtype.

    Raises:
      ValueError: `images` not of rank 4.

    Example:
      >>> random_flip(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
      (2, 8, 8, 1)
    """
    _check_images(images)
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1, :], images)


def cutout(key: Key[Array, ""], images: Images, size: int) -> Shaped[Array, "B H W C"]:
    """Sets a square of each image to 0; its centre is any pixel, so that at the border less is cut.

    Args:
      key: consumed.
      images: `[B, H, W, C]`, any dtype.
      size: side of the square in pixels, from 1.

    Returns:
      `[B, H, W, C]`, same dtype.

    Raises:
      ValueError: `images` not of rank 4, or `size` below 1.

    Example:
      >>> int(cutout(jax.random.key(0), jnp.ones((1, 8, 8, 1)), 1).sum())
      63

    Source: DeVries, Taylor 2017, arXiv 1708.04552, section 3.2. Here 0 is black; there the images
      are normalised first.
    """
    _check_images(images)
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    _, height, width, _ = images.shape

    key_rows, key_columns = jax.random.split(key)

    def inside(key: Array, pixels: int) -> Array:  # [B, pixels]
        centre = jax.random.randint(key, (images.shape[0], 1), 0, pixels)
        offset = jnp.arange(pixels)[None, :] - (centre - size // 2)
        return (offset >= 0) & (offset < size)

    rows, columns = inside(key_rows, height), inside(key_columns, width)
    square = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(square, jnp.zeros((), images.dtype), images)


def chain(*functions: Augment) -> Augment:
    """One augmentation that applies several, each with its own key.

    Args:
      functions: `function(key, inputs) -> inputs`, applied from left to right.

    Returns:
      `augment(key, inputs) -> inputs`; the key is consumed.

    Example:
      >>> chain(random_flip, random_flip)(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
      (2, 8, 8, 1)
    """

    def augment(key: Key[Array, ""], inputs: Rows) -> Rows:
        for index, function in enumerate(functions):
            inputs = function(jax.random.fold_in(key, index), inputs)
        return inputs

    return augment


def to_float(
    inputs: Shaped[AnyArray, "*shape C"],
    maximum: float,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
) -> Float[AnyArray, "*shape C"]:
    """Scales stored values to floats: (inputs / maximum - mean) / std.

    Args:
      inputs: `[..., C]`, integers as stored.
      maximum: largest stored value, 255 for bytes.
      mean, std: after the division by `maximum`; a number, or one for each channel, `[C]`.

    Returns:
      float32, of the shape of `inputs`.

    Raises:
      ValueError: `maximum` or `std` not above 0, or `mean` or `std` neither a number nor `[C]`.

    Example:
      >>> to_float(jnp.array([[0], [255]], jnp.uint8), 255.0, mean=0.5, std=0.5).tolist()
      [[-1.0], [1.0]]
    """
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    for name, value in (("mean", mean), ("std", std)):
        if value.shape not in ((), inputs.shape[-1:]):
            raise ValueError(
                f"`{name}` must be a number or have shape {inputs.shape[-1:]}, got {value.shape}."
            )
    for name, value in (("maximum", np.asarray(maximum)), ("std", std)):
        if not (value > 0).all():
            raise ValueError(f"`{name}` must be above 0, got {value}.")
    per_channel = lambda value: (
        value.reshape((1,) * (inputs.ndim - 1) + (-1,)) if value.ndim else value
    )
    scaled = inputs.astype(jnp.float32) / np.float32(maximum)
    return (scaled - per_channel(mean)) / per_channel(std)


def _check_images(images: Images) -> None:
    if images.ndim != 4:
        raise ValueError(f"`images` must have shape [B, H, W, C], got {images.shape}.")
