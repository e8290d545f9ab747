"""Encoded pictures to pixels, as the preference models' reference prepares them: transformers' CLIPImageProcessor.

Pillow's bicubic resize smooths when it shrinks, unlike the one on the device (`spo_jax.core.images.resize_bicubic`),
which is for decoded predictions.
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from spo_jax.core.errors import UserError
from spo_jax.core.typing import UInt8


def decode(data: bytes, side: int, where: str = "picture") -> UInt8[np.ndarray, "side side 3"]:
    """RGB, the shorter side resized to ``side``, the middle square: `CLIPImageProcessorPil`, to the bit.

    Args:
      data: a file's content: JPEG, PNG, WebP or what else Pillow reads.
      where: the picture's name in the message of an error.

    Raises:
      UserError: the file is damaged.
    """
    try:
        image = _rgb(Image.open(io.BytesIO(data)))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise all kinds: OSError, SyntaxError, ValueError, struct.error, ...
        reason = "no picture format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{where} cannot be decoded ({reason}): damaged since; prepare the data again") from error
    width, height = image.size
    # Cut off, not rounded, and in this order of operations: another one would be a pixel longer now and then.
    longer = int(side * max(width, height) / min(width, height))
    size = (side, longer) if width <= height else (longer, side)
    left, top = ((length - side) // 2 for length in size)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def _rgb(image: Image.Image) -> Image.Image:
    """Without transparency: what is transparent becomes white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
