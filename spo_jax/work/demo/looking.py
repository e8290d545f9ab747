"""What the tab Try shows of two drawings: images large enough to see, their difference, and a strip over time."""

import base64
import html
import io
from collections.abc import Collection

import numpy as np
from PIL import Image

from spo_jax.core.images import to_uint8
from spo_jax.core.typing import Float, UInt8
from spo_jax.work.studio import Frame

AMPLIFICATIONS = (1, 2, 4, 8, 16, 32, 64)
_SHOWN_SIDE = 512  # pixels to which smaller images are enlarged, so that browsers do not blur them
_THUMBNAIL = 96  # pixels of the longer side in the strip


def enlarged(image: UInt8[np.ndarray, "h w 3"], side: int = _SHOWN_SIDE) -> UInt8[np.ndarray, "H W 3"]:
    """Repeats the pixels of an image until its longer side is nearly ``side``; larger ones stay as they are."""
    factor = max(side // max(image.shape[:2]), 1)
    return image.repeat(factor, 0).repeat(factor, 1)


def difference(
    base: Float[np.ndarray, "h w 3"], tuned: Float[np.ndarray, "h w 3"]
) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """Shows ``tuned`` minus ``base`` around a middle grey, amplified until it is easy to see.

    Args:
      base: image in [-1, 1].
      tuned: another one.

    Returns:
      The difference as an image, and its amplification: the largest one at which 99 % of all values are not cut off.
    """
    change = (np.clip(tuned, -1, 1) - np.clip(base, -1, 1)) / 2
    reach = np.quantile(np.abs(change), 0.99)
    factor = max((factor for factor in AMPLIFICATIONS if factor * reach <= 1), default=1)
    return to_uint8(np.clip(factor * change, -1, 1)), factor


class Drawing:
    """What is shown of one image, from the frames that were drawn of it so far.

    Each frame is made ready once, when it is added, because everything is shown anew after every frame; and a frame's
    arrays are not kept.

    Attributes:
      title: its title in the strip.
      image: the finished image, or before it what was last predicted of it; None before the first frame.
      score: the judge's score of the finished image; None before it and without a judge.
      heads: texts above the cells of the strip.
      cells: HTML of the cells: a prediction for each frame with its score, and at last the finished image.
    """

    def __init__(self, title: str):
        self.title = title
        self.image: Float[np.ndarray, "h w 3"] | None = None
        self.score: float | None = None
        self.heads: list[str] = []
        self.cells: list[str] = []

    def add(self, frame: Frame) -> None:
        """Adds the next frame, whose first image is shown."""
        head = f"t = {frame.timestep:g}"
        self._show(frame.prediction, frame.scores, head, f"{self.title} at {head}")
        if frame.images is not None:
            self._show(frame.images, frame.image_scores, "image", f"{self.title}: the finished image")
            self.score = None if frame.image_scores is None else float(frame.image_scores[0])

    def _show(
        self, images: Float[np.ndarray, "1 h w 3"], scores: Float[np.ndarray, " 1"] | None, head: str, text: str
    ) -> None:
        self.image = images[0]
        self.heads.append(head)
        self.cells.append(_cell(images[0], scores, text))


def strip(drawings: Collection[Drawing]) -> str:
    """Returns a table of HTML: a column for each timestep, a row for each drawing, and under an image its score."""
    heads = max((drawing.heads for drawing in drawings), key=len)
    columns = "".join(f"<th scope='col'>{head}</th>" for head in heads)
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(drawing.title)}</th>{''.join(drawing.cells)}</tr>" for drawing in drawings
    )
    table = f"<table><thead><tr><td></td>{columns}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div class='strip' tabindex='0'>{table}</div>"


def _cell(image: Float[np.ndarray, "h w 3"], scores: Float[np.ndarray, " 1"] | None, text: str) -> str:
    score = "" if scores is None else f"<span>{scores[0]:.2f}</span>"
    return f"<td><img src='{_data(image)}' alt='{html.escape(text, quote=True)}'>{score}</td>"


def _data(image: Float[np.ndarray, "h w 3"]) -> str:
    """Returns a thumbnail as the address of an image."""
    thumbnail = Image.fromarray(enlarged(to_uint8(image), _THUMBNAIL))
    thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    thumbnail.save(file, "webp", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
