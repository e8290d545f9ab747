"""Finished images to CLIP's input, on the devices, as the processors of its publishers do it to files.

Images are rounded to 8 bits first, because the originals read PNGs, and resized as Pillow does, bit for bit.

They are RGB. transformers' processor drops alpha before anything else, so that is what a caller does to RGBA files.
OpenAI's transform resizes RGBA, with the colours multiplied by alpha, and then drops alpha; this is not done here.
"""

from collections.abc import Callable

import jax.numpy as jnp

from spo_jax.core.resizing import center_crop, center_crop_floor, resize_pillow, shorter_side_size_cut, to_bytes
from spo_jax.core.typing import Array, Float, UInt8
from spo_jax.rewards.common.clip_score import normalise

# A function of images near [-1, 1] and the side of CLIP's input in pixels.
Pixels = Callable[[Float[Array, "b h w 3"], int], Float[Array, "b side side 3"]]


def transformers_pixels(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """Does what transformers' CLIPImageProcessor does (the one on Pillow, as all versions before 5 have by default).

    Args:
      images: images near [-1, 1].
      side: side of CLIP's input in pixels.
    """
    return normalise(center_crop_floor(_resized(images, side), side).astype(jnp.float32) / 255)


def openai_pixels(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """Does what the transform of OpenAI's CLIP does, which crops as torchvision.

    The original CLIPScore, LAION's aesthetic predictor and ImageReward use it.

    Args:
      images: images near [-1, 1].
      side: side of CLIP's input in pixels.
    """
    return normalise(center_crop(_resized(images, side), side).astype(jnp.float32) / 255)


def _resized(images: Float[Array, "b h w 3"], side: int) -> UInt8[Array, "b h2 w2 3"]:
    return resize_pillow(to_bytes(images), shorter_side_size_cut(*images.shape[1:3], side))
