"""What the tab Try shows of two drawings: images large enough to see, their difference, and a strip over time."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

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


def strip(drawings: Mapping[str, Sequence[Frame]]) -> str:
    """Returns a table of HTML: a column for each timestep, a row for each drawing, and under an image its score.

    Args:
      drawings: by the row's title, the frames of one image so far; the last frame adds the finished image.
    """
    longest = max(drawings.values(), key=len)
    heads = [f"t = {frame.timestep:g}" for frame in longest]
    heads += ["image"] if longest[-1].images is not None else []
    columns = "".join(f"<th scope='col'>{head}</th>" for head in heads)
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(title)}</th>{_cells(title, frames)}</tr>"
        for title, frames in drawings.items()
    )
    table = f"<table><thead><tr><td></td>{columns}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div class='strip' tabindex='0'>{table}</div>"


def _cells(title: str, frames: Sequence[Frame]) -> str:
    cells = [_cell(frame.prediction[0], frame.scores, f"{title} at t = {frame.timestep:g}") for frame in frames]
    last = frames[-1]
    if last.images is not None:
        cells.append(_cell(last.images[0], last.image_scores, f"{title}: the finished image"))
    return "".join(cells)


def _cell(image: Float[np.ndarray, "h w 3"], scores: Float[np.ndarray, " 1"] | None, text: str) -> str:
    score = "" if scores is None else f"<span>{scores[0]:.2f}</span>"
    return f"<td><img src='{_data(image)}' alt='{html.escape(text, quote=True)}'>{score}</td>"


def _data(image: Float[np.ndarray, "h w 3"]) -> str:
    """Returns a thumbnail as the address of an image."""
    picture = Image.fromarray(enlarged(to_uint8(image), _THUMBNAIL))
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "webp", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
