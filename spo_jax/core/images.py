"""Image arithmetic that has to equal torch's, and grids of images."""

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, UInt8


def resize_bicubic(images: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Resizes images bicubically with a = -0.75, half-pixel centres and no antialiasing.

    The result equals ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`` up to float32 rounding.

    Args:
      images: images of any float dtype.
      size: (height, width) of the result.

    Returns:
      The resized images in the dtype of ``images``.
    """
    shape = (images.shape[0], *size, images.shape[3])
    # In float32, because bfloat16 sums of four taps are visible in the score of the preference model.
    resized = jax.image.resize(images.astype(jnp.float32), shape, "cubic-pytorch", antialias=False)
    return resized.astype(images.dtype)


def shorter_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Scales a size to a shorter side of ``side``; the longer side rounds half up, as in the SPO reference."""
    scale = side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def center_crop(images: Float[Array, "b h w c"], side: int) -> Float[Array, "b side side c"]:
    """Cuts out the middle ``side`` x ``side`` square; half-pixel offsets round half to even, as torchvision does."""
    top = round((images.shape[1] - side) / 2)
    left = round((images.shape[2] - side) / 2)
    return images[:, top : top + side, left : left + side]


def to_uint8(images: Float[Array | np.ndarray, "... c"]) -> UInt8[np.ndarray, "... c"]:
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
