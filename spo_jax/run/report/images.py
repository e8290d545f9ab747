"""Pairs of images before and after training: as the page shows them, and as one sheet."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from spo_jax.core.images import above, image_grid
from spo_jax.core.typing import UInt8

MOST_PAIRS = 24  # pairs on the page, which has to stay small enough to be sent by mail
SHEET_COLUMNS = 8
SHEET_PAIRS = 16
SHEET_SIDE = 96  # pixels to which the sheet enlarges small images, which a viewer would blur
SHEET_LARGEST = 512  # pixels to which it reduces large ones
SMALL = 128  # images of at most this many pixels are drawn as sharp squares, and stored without loss
LARGEST = 768  # longer side of an image on the page


class ImagePair(NamedTuple):
    """Two images of the same prompt and noise.

    Attributes:
      prompt: the prompt.
      before: the image before training.
      after: the image after training.
    """

    prompt: str
    before: UInt8[np.ndarray, "h w 3"]
    after: UInt8[np.ndarray, "h w 3"]


def shown(pair: ImagePair) -> dict[str, Any]:
    """Returns what the page needs for a pair: the prompt, both images as data URIs, their size, whether it is small."""
    height, width = pair.before.shape[:2]
    return {
        "prompt": pair.prompt,
        "before": _data_uri(pair.before),
        "after": _data_uri(pair.after),
        "width": width,
        "height": height,
        "small": max(height, width) <= SMALL,
    }


def sheet(pairs: Sequence[ImagePair]) -> UInt8[np.ndarray, "H W 3"]:
    """Lays out the first images before training, above those after it."""
    first = pairs[:SHEET_PAIRS]
    before, after = (
        image_grid(np.stack([_cell(image) for image in images]), SHEET_COLUMNS)
        for images in ([pair.before for pair in first], [pair.after for pair in first])
    )
    return above(before, after)


def _cell(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Enlarges a small image by a whole factor, so that its pixels stay sharp, and reduces a large one."""
    factor = max(1, SHEET_SIDE // len(image))
    return np.asarray(_reduced(image.repeat(factor, 0).repeat(factor, 1), SHEET_LARGEST))


def _reduced(image: UInt8[np.ndarray, "h w 3"], side: int) -> Image.Image:
    reduced = Image.fromarray(image)
    reduced.thumbnail((side, side), Image.Resampling.LANCZOS)
    return reduced


def _data_uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Encodes an image: a small one as PNG with its very pixels, a large one as WebP of at most `LARGEST` pixels."""
    stream = io.BytesIO()
    if max(image.shape) <= SMALL:
        kind = "png"
        Image.fromarray(image).save(stream, format="PNG", optimize=True)
    else:
        kind = "webp"
        _reduced(image, LARGEST).save(stream, format="WebP", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
