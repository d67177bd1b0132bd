"""Single images, as pictures (Pillow) or arrays."""

from pathlib import Path

import numpy as np

from dynexit.data.host_shapes import Num


def read(path: Path, grey: bool) -> Num[np.ndarray, "height width channels"]:
    """An image.

    Args:
      path: `.png` or `.jpg`, or `.npy` with `[height, width]` or `[height, width, channels]`.
      grey: read a picture with one channel and not with three.

    Returns:
      uint8 or floating point `[height, width, channels]`, finite.

    Raises:
      ValueError: the file cannot be read, or holds no image.
      ImportError: a picture, and Pillow is not installed.
    """
    image = _array(path) if path.suffix.lower() == ".npy" else _picture(path, grey)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(
            f"{path} must have shape [height, width] or [height, width, channels], "
            f"got {image.shape}"
        )
    if image.dtype != np.uint8 and image.dtype.kind != "f":
        raise ValueError(f"{path} must be bytes (uint8) or floating point, got {image.dtype}")
    if not np.isfinite(image).all():
        raise ValueError(f"{path} must be finite, got a NaN or an infinity")
    return image


def read_all(paths: list[Path], grey: bool) -> Num[np.ndarray, "n height width channels"]:
    """Images of one size and type, `[n, height, width, channels]`.

    Raises:
      ValueError: an image of another size or type than the first; it is named.
    """
    first = read(paths[0], grey)
    images = np.empty((len(paths), *first.shape), first.dtype)
    for row, path in enumerate(paths):
        image = first if row == 0 else read(path, grey)
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"images must have one size and type: {paths[0]} is {first.dtype} {first.shape}, "
                f"{path} is {image.dtype} {image.shape}"
            )
        images[row] = image
    return images


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from error


def _picture(path: Path, grey: bool) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{path} is a picture, which Pillow reads; `pip install pillow`, or keep the images as "
            "arrays in .npy files"
        ) from error
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
