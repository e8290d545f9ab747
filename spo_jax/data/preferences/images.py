"""Decodes images to pixels as the reference of the preference models does, with transformers' CLIPImageProcessor.

Pillow's bicubic resize smooths when it shrinks, unlike the resize on the device
(`spo_jax.core.resizing.resize_bicubic`), which is for decoded predictions.
"""

import numpy as np
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.core.typing import UInt8
from spo_jax.data.encoded_images import BadImage, open_image


def decode(
    data: bytes,
    side: int,
    where: str = "image",
    hint: str = "it was damaged after it was prepared; prepare the data again",
) -> UInt8[np.ndarray, "side side 3"]:
    """Decodes an image, resizes its shorter side and crops the middle square, bit for bit as `CLIPImageProcessorPil`.

    Args:
      data: content of a file in JPEG, PNG, WebP or another format of photos.
      side: height and width of the result in pixels.
      where: name of the image in error messages.
      hint: what happened and what to do, for error messages.

    Returns:
      RGB pixels.

    Raises:
      UserError: the file is damaged.
    """
    try:
        image = _decoded(data)
    except BadImage as error:
        raise UserError(f"{where} {error}: {hint}") from error

    # Resize, then crop.
    width, height = image.size
    # The longer side is truncated rather than rounded, and computed in this order of operations: in another order it
    # would occasionally be a pixel longer.
    longer = int(side * max(width, height) / min(width, height))
    size = (side, longer) if width <= height else (longer, side)
    left, top = ((length - side) // 2 for length in size)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def decode_rgb(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image at its own size; transparent pixels become white.

    Raises:
      BadImage: the file is damaged, or no image.
    """
    return np.asarray(_decoded(data))


def _decoded(data: bytes) -> Image.Image:
    try:
        return _rgb(open_image(data))
    except (MemoryError, BadImage):
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise BadImage(f"cannot be decoded ({error})") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB; transparent pixels become white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
