"""Image arithmetic that has to equal torch's, and grids for people."""

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, UInt8


def resize_bicubic(images: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Bicubic resize with a = -0.75, half-pixel centres and no antialiasing.

    Equal to ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`` to float32 rounding.
    """
    shape = (images.shape[0], *size, images.shape[3])
    # float32: bfloat16 sums of four taps are visible in the score of the preference model.
    resized = jax.image.resize(images.astype(jnp.float32), shape, "cubic-pytorch", antialias=False)
    return resized.astype(images.dtype)


def shorter_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The size whose shorter side is ``side``; the longer one is rounded half up, as the SPO reference does."""
    scale = side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def center_crop(images: Float[Array, "b h w c"], side: int) -> Float[Array, "b side side c"]:
    """The middle ``side`` x ``side`` square; a half-pixel offset rounds half to even, as torchvision does."""
    top = round((images.shape[1] - side) / 2)
    left = round((images.shape[2] - side) / 2)
    return images[:, top : top + side, left : left + side]


def to_uint8(images: Float[Array | np.ndarray, "... c"]) -> UInt8[np.ndarray, "... c"]:
    """Images in [-1, 1] to 0..255, clipped, rounded to nearest, on the host."""
    unit = np.clip(np.asarray(images, np.float32) / 2 + 0.5, 0, 1)
    return np.round(unit * 255).astype(np.uint8)


def image_grid(images: UInt8[np.ndarray, "n h w c"], columns: int, gap: int = 2) -> UInt8[np.ndarray, "H W c"]:
    """Rows of ``columns`` images with a white gap; the last row is filled up with white."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def above(
    first: UInt8[np.ndarray, "h w c"], second: UInt8[np.ndarray, "h2 w c"], gap: int = 16
) -> UInt8[np.ndarray, "H w c"]:
    """Two images of equal width as one, ``first`` above ``second``, with a white gap."""
    white = np.full((gap, *first.shape[1:]), 255, np.uint8)
    return np.concatenate([first, white, second])
