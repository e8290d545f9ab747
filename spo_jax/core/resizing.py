"""Resizing and cropping of images on the devices, which has to equal torch's."""

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float


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
