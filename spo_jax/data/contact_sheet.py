"""Contact sheets: small copies of images in rows, each with its prompt below it, or in a grid with labels."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spo_jax.core.images import image_grid
from spo_jax.core.typing import UInt8

LIMIT = 256  # images of a sheet
_SIDES = (128, 256)  # pixels of the longer side: small images are enlarged to the first, large ones reduced to the last
_COLUMNS = 8
_FONT = 12
_LINES = 2
_GAP = 4


class ContactSheet:
    """A sheet of images of one size, in the order in which they are added; images beyond `LIMIT` are left out.

    Args:
      columns: images in a row; None makes the sheet about square, with at most 8 columns.

    Attributes:
      prompts: prompt of each image, by the title with which it was added.
    """

    def __init__(self, columns: int | None = None):
        self._columns = columns
        self._cells: list[np.ndarray] = []
        self.prompts: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._cells)

    def add(self, title: str, prompt: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds an image.

        Args:
          title: name of the image, such as that of its file.
          prompt: the text to show below the image.
          image: the image.
        """
        if len(self) < LIMIT:
            self._cells.append(_cell(image, prompt))
            self.prompts[title] = prompt

    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the sheet, which needs at least one image."""
        columns = self._columns or min(_COLUMNS, math.ceil(math.sqrt(len(self))))
        return image_grid(np.stack(self._cells), min(columns, len(self)), _GAP)


def labelled_grid(
    rows: Sequence[tuple[str, Sequence[UInt8[np.ndarray, "h w 3"]]]], columns: Sequence[str]
) -> UInt8[np.ndarray, "H W 3"]:
    """Lays small copies of images out in a grid whose rows and columns have labels.

    Args:
      rows: the label of each row, which stands above it over the whole width, and its images, all of one size.
      columns: the label of each column, which stands above all rows.
    """
    first = _scaled(rows[0][1][0])
    heads = np.stack([_text(label, first.shape[1], _LINES) for label in columns])
    bands = [image_grid(heads, len(columns), _GAP)]
    width = bands[0].shape[1]
    for label, images in rows:
        bands.append(_text(label, width))
        bands.append(image_grid(np.stack([_scaled(image) for image in images]), len(columns), _GAP))
    return np.concatenate(bands)


def _cell(image: UInt8[np.ndarray, "h w 3"], prompt: str) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns a small copy of the image above its prompt, which is cut to a few lines."""
    small = _scaled(image)
    return np.concatenate([small, _text(prompt, small.shape[1], _LINES)])


def _text(text: str, width: int, height: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a white strip with a text, which is wrapped and cut to a few lines.

    Args:
      text: the text.
      width: width of the strip in pixels.
      height: lines for which there is room; None makes room for those that the text has.
    """
    font = ImageFont.load_default(_FONT)
    per_line = max(1, int(width / font.getlength("e")))
    lines = textwrap.wrap(text, per_line, max_lines=_LINES, placeholder=" …", break_on_hyphens=False)
    strip = Image.new("RGB", (width, (height or len(lines)) * (_FONT + 3) + 3), "white")
    ImageDraw.Draw(strip).multiline_text((2, 1), "\n".join(lines), "black", font, spacing=2)
    return np.asarray(strip)


def _scaled(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Enlarges a small image by a whole factor, so that its pixels stay sharp, and reduces a large one."""
    small, large = _SIDES
    height, width, _ = image.shape
    side = max(height, width)
    if side < small:
        return image.repeat(small // side, 0).repeat(small // side, 1)
    if side <= large:
        return image
    size = (max(1, round(width * large / side)), max(1, round(height * large / side)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
