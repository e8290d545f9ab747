"""Signs of reward hacking that need no model: what images look like whose judge has been pleased instead of a person.

Policies that exploit a judge tend to too vivid colours, to values beyond what an image can show, and to grain or edges
that are too sharp. None of these is bad by itself, so a sign has no better direction: it is read beside the rewards, on
images of the same prompts, noise and size.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from spo_jax.core.typing import Float

SIGN_MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "saturation": "mean saturation of the pixels (HSV), 0 (grey) to 1",
        "out_of_range": "share of pixel values outside [-1, 1]",
        "high_frequency": "share of the brightness's variance in detail finer than 4 pixels, 0 to 1",
    }
)

_BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow's mode L has them (ITU-R 601)
_FLATTEST = 1 / 255**2 / 12  # variance of rounding to 8 bits; below it there is no detail that could be seen


def image_signs(images: Float[np.ndarray, "b h w 3"]) -> dict[str, Float[np.ndarray, " b"]]:
    """Measures the signs of each image.

    Args:
      images: values near [-1, 1], not clipped, of any size; but ``high_frequency`` counts pixels, so it compares images
        of one size only.

    Returns:
      The values by the names of `SIGN_MEANINGS`, float64.
    """
    shown = np.nan_to_num(np.asarray(images, np.float64), nan=0, posinf=1, neginf=-1).clip(-1, 1) / 2 + 0.5
    return {
        "saturation": _saturation(shown),
        "out_of_range": out_of_range(images),
        "high_frequency": _high_frequency(shown @ np.asarray(_BRIGHTNESS)),
    }


def out_of_range(images: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, " b"]:
    """Returns the share of each image's values outside [-1, 1]; values that are not finite count as outside."""
    return 1 - (np.abs(images) <= 1).mean((1, 2, 3))


def _saturation(shown: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, " b"]:
    """Returns the mean over pixels of (max - min) / max of red, green and blue in [0, 1]; black has none."""
    highest = shown.max(-1)
    return ((highest - shown.min(-1)) / np.where(highest > 0, highest, 1)).mean((1, 2))


def _high_frequency(brightness: Float[np.ndarray, "b h w"]) -> Float[np.ndarray, " b"]:
    """Returns the share of the variance at a quarter of a cycle per pixel or more, along either axis.

    The cosine transform continues an image by its mirror image, so that opposite borders that differ are no edge. It is
    orthonormal: its squares sum to those of the pixels. White noise has 3/4.
    """
    from scipy.fft import dctn  # here, because it takes long to import beside what else needs this module

    height, width = brightness.shape[1:]
    squares = dctn(brightness, axes=(1, 2), norm="ortho") ** 2 / (height * width)
    squares[:, 0, 0] = 0  # the mean
    total = squares.sum((1, 2))
    # Index k of n is k / 2n cycles per pixel, so the coarse half ends before n / 2.
    coarse = squares[:, : -(-height // 2), : -(-width // 2)].sum((1, 2))
    return (total - coarse) / np.maximum(total, _FLATTEST)
