"""Images as bytes on the host, grids of them, and PNG files."""

import os
from collections.abc import Mapping

import numpy as np

from spo_jax.core.files import write_atomic
from spo_jax.core.typing import Float, UInt8


def to_uint8(images: Float[np.ndarray, "... c"]) -> UInt8[np.ndarray, "... c"]:
    """Converts images in [-1, 1] to 0..255 on the host, clipped and rounded to nearest."""
    unit = np.clip(np.asarray(images, np.float32) / 2 + 0.5, 0, 1)
    return np.round(unit * 255).astype(np.uint8)


def image_grid(images: UInt8[np.ndarray, "n h w c"], columns: int, gap: int = 2) -> UInt8[np.ndarray, "H W c"]:
    """Lays images out in rows of ``columns`` with white gaps; the last row is filled up with white.

    Args:
      images: images of one size.
      columns: images in a row.
      gap: pixels between two images.
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top = (index // columns) * (height + gap)
        left = (index % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def above(
    first: UInt8[np.ndarray, "h w c"], second: UInt8[np.ndarray, "h2 w c"], gap: int = 16
) -> UInt8[np.ndarray, "H w c"]:
    """Joins two images of equal width into one, ``first`` above ``second``, with a white gap."""
    white = np.full((gap, *first.shape[1:]), 255, np.uint8)
    return np.concatenate([first, white, second])


def write_png(
    path: str | os.PathLike, image: UInt8[np.ndarray, "h w 3"], texts: Mapping[str, str] | None = None
) -> None:
    """Writes an image as a PNG, completely or not at all.

    Args:
      path: path of the file.
      image: the image.
      texts: text fields of the file by name.

    Raises:
      UserError: the file cannot be written.
    """
    from PIL import Image, PngImagePlugin  # here, because commands look at their flags before they import what is large

    info = PngImagePlugin.PngInfo()
    for name, text in (texts or {}).items():
        info.add_itxt(name, text)
    write_atomic(path, lambda temporary: Image.fromarray(image).save(temporary, format="PNG", pnginfo=info))
