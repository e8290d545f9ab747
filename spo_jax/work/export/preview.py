"""The small image of a LoRA: beside its file, where web UIs show it, and in the file's header."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from spo_jax.core.files import write_atomic
from spo_jax.core.images import image_grid
from spo_jax.core.typing import UInt8
from spo_jax.run.report.images import ImagePair

_SIDE = 512  # pixels of a side, of the image beside the file
_THUMBNAIL_SIDE = 256  # as the model spec recommends
_COLUMNS = 2


def preview_file(file: Path) -> Path:
    """Returns the name under which web UIs look for the image of a LoRA file: ``NAME.preview.png``."""
    return file.with_name(f"{file.stem}.preview.png")


def write_preview(path: Path, pairs: Sequence[ImagePair]) -> None:
    """Writes the first four images that were drawn with the LoRA, as a square.

    Raises:
      UserError: the file cannot be written.
    """
    image = _square(pairs, _SIDE)
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))


def thumbnail(pairs: Sequence[ImagePair]) -> str:
    """Returns the same in small as a data URI of some kilobytes."""
    stream = io.BytesIO()
    _square(pairs, _THUMBNAIL_SIDE).save(stream, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _square(pairs: Sequence[ImagePair], side: int) -> Image.Image:
    after = [pair.after for pair in pairs[: _COLUMNS**2]]
    images: UInt8[np.ndarray, "n h w 3"] = np.stack(after if len(after) == _COLUMNS**2 else after[:1])
    grid = image_grid(images, min(_COLUMNS, len(images)))
    factor = max(1, side // max(grid.shape))  # small images stay sharp
    square = Image.fromarray(grid.repeat(factor, 0).repeat(factor, 1))
    square.thumbnail((side, side), Image.Resampling.LANCZOS)
    return square
