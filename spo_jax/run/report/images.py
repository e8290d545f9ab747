"""Pairs of images before and after training: as the page shows them, and as one sheet."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.core.images import above, image_grid, write_png
from spo_jax.core.typing import UInt8

MOST_PAIRS = 24  # pairs on the page, which has to stay small enough to be sent by mail
SHEET_COLUMNS = 8
SHEET_PAIRS = 16
SHEET_GAP = 2  # pixels between two of its images
SHEET_BAND = 16  # pixels between those before and those after
SHEET_SIDE = 96  # pixels to which the sheet enlarges small images, which a viewer would blur
SHEET_LARGEST = 512  # pixels to which it reduces large ones
SMALL = 128  # images of at most this many pixels are drawn as sharp squares, and stored without loss
LARGEST = 768  # longer side of an image on the page
_PROMPTS = "prompts"  # text field of the sheet


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
        "before": data_uri(pair.before),
        "after": data_uri(pair.after),
        "width": width,
        "height": height,
        "small": max(height, width) <= SMALL,
    }


def sheet(pairs: Sequence[ImagePair]) -> UInt8[np.ndarray, "H W 3"]:
    """Lays out the first images before training, above those after it."""
    first = pairs[:SHEET_PAIRS]
    before, after = (
        image_grid(np.stack([_cell(image) for image in images]), SHEET_COLUMNS, SHEET_GAP)
        for images in ([pair.before for pair in first], [pair.after for pair in first])
    )
    return above(before, after, SHEET_BAND)


def write_sheet(path: Path, pairs: Sequence[ImagePair]) -> None:
    """Writes `sheet` as a PNG, which holds the prompts of its images as a JSON list in the text field ``prompts``.

    Raises:
      UserError: the file cannot be written.
    """
    write_png(path, sheet(pairs), {_PROMPTS: json.dumps([pair.prompt for pair in pairs[:SHEET_PAIRS]])})


def read_sheet(path: Path) -> list[ImagePair]:
    """Reads the pairs of images from what `write_sheet` wrote, in the size that they have there.

    Returns:
      The pairs; none if the file is not there, or does not hold the prompts.

    Raises:
      UserError: the file is there but is not an image of such pairs.
    """
    if not path.is_file():
        return []
    try:
        with Image.open(path) as file:
            whole = np.asarray(file.convert("RGB"))
            prompts = json.loads(file.info.get(_PROMPTS, "[]"))
        if not prompts:
            return []
        width = (whole.shape[1] + SHEET_GAP) // SHEET_COLUMNS - SHEET_GAP
        rows = -(-len(prompts) // SHEET_COLUMNS)
        height = (len(whole) - SHEET_BAND) // 2
        halves = whole[:height], whole[-height:]
        before, after = (_cut(half, rows, width, len(prompts)) for half in halves)
        return [ImagePair(*pair) for pair in zip(prompts, before, after, strict=True)]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read images before and after training from {path}: {error}") from error


def _cut(
    grid: UInt8[np.ndarray, "H W 3"], rows: int, width: int, count: int
) -> list[UInt8[np.ndarray, "h w 3"]]:  # fmt: skip
    """Cuts a grid of `sheet` into its first images."""
    height = (len(grid) + SHEET_GAP) // rows - SHEET_GAP
    places = [divmod(index, SHEET_COLUMNS) for index in range(count)]
    corners = [(row * (height + SHEET_GAP), column * (width + SHEET_GAP)) for row, column in places]
    return [grid[top : top + height, left : left + width] for top, left in corners]


def _cell(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Enlarges a small image by a whole factor, so that its pixels stay sharp, and reduces a large one."""
    factor = max(1, SHEET_SIDE // len(image))
    return np.asarray(_reduced(image.repeat(factor, 0).repeat(factor, 1), SHEET_LARGEST))


def _reduced(image: UInt8[np.ndarray, "h w 3"], side: int) -> Image.Image:
    reduced = Image.fromarray(image)
    reduced.thumbnail((side, side), Image.Resampling.LANCZOS)
    return reduced


def data_uri(image: UInt8[np.ndarray, "h w 3"], largest: int = LARGEST, quality: int = 88) -> str:
    """Encodes an image for a page: a small one as PNG with its very pixels, a large one as WebP.

    Args:
      image: the image.
      largest: pixels to which the longer side of a large one is reduced.
      quality: quality of WebP, 0 to 100.
    """
    stream = io.BytesIO()
    if max(image.shape) <= SMALL:
        kind = "png"
        Image.fromarray(image).save(stream, format="PNG", optimize=True)
    else:
        kind = "webp"
        _reduced(image, largest).save(stream, format="WebP", quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
