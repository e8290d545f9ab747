"""Contact sheets: small copies of images in rows, each with its prompt below it."""

import math
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spo_jax.core.images import image_grid
from spo_jax.core.typing import UInt8

LIMIT = 256  # images of a sheet
_SIDES = (128, 256)  # pixels of the longer side: small images are enlarged to the first, large ones reduced to the last
_COLUMNS = 8
_FONT = 12
_LINES = 2


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
        return image_grid(np.stack(self._cells), min(columns, len(self)), gap=4)


def _cell(image: UInt8[np.ndarray, "h w 3"], prompt: str) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns a small copy of the image above its prompt, which is cut to a few lines."""
    small = _scaled(image)
    font = ImageFont.load_default(_FONT)
    width = small.shape[1]
    per_line = max(1, int(width / font.getlength("e")))
    lines = textwrap.wrap(prompt, per_line, max_lines=_LINES, placeholder=" …", break_on_hyphens=False)
    strip = Image.new("RGB", (width, _LINES * (_FONT + 3) + 3), "white")
    ImageDraw.Draw(strip).multiline_text((2, 1), "\n".join(lines), "black", font, spacing=2)
    return np.concatenate([small, np.asarray(strip)])


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
