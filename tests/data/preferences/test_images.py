"""Pixels equal those of transformers' image processor exactly: the same library does the same arithmetic."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.images import decode
from tests.support.pairs import encoded


def theirs(data: bytes, side: int) -> np.ndarray:
    """Returns the pixels of transformers' image processor."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_rescale=False, do_normalize=False
    )
    pixels = processor(Image.open(io.BytesIO(data)), return_tensors="np").pixel_values[0]
    assert pixels.dtype == np.uint8
    return pixels.transpose(1, 2, 0)


# Shrinking and growing, portrait and landscape, odd margins of the crop, longer sides whose exact size is not whole.
SIZES = ((64, 64), (32, 32), (30, 77), (77, 30), (100, 149), (149, 100), (33, 200), (47, 48), (16, 17))


@pytest.mark.parametrize("side", [32, 33, 50])
@pytest.mark.parametrize("height, width", SIZES)
def test_pixels_equal_those_of_the_image_processor(height, width, side):
    data = encoded(height, height, width, "JPEG" if height % 2 else "PNG")
    np.testing.assert_array_equal(decode(data, side), theirs(data, side))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 4), np.uint8)
    stream = io.BytesIO()
    source = Image.fromarray(pixels, "RGBA")
    if mode == "RGBA":
        image = source
    elif mode == "LA":
        image = source.convert(mode)
    else:
        image = source.convert("RGB").convert(mode)
    image.save(stream, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(decode(stream.getvalue(), 32), theirs(stream.getvalue(), 32))


def test_a_transparent_colour_of_a_palette_becomes_white():
    image = Image.new("P", (40, 40), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 40, 20))
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=0)
    pixels = decode(stream.getvalue(), 40)
    np.testing.assert_array_equal(pixels, theirs(stream.getvalue(), 40))
    assert (pixels[30, 5] == 255).all() and (pixels[5, 5] == (200, 100, 50)).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_an_error_names_a_truncated_file(form):
    data = encoded(0, 64, 64, form)
    with pytest.raises(
        UserError, match=r"^pair 7 cannot be decoded \(.+\): it was damaged after .*; prepare the data again$"
    ):
        decode(data[: len(data) // 2], 32, "pair 7")


def test_a_file_that_is_not_an_image_is_an_error():
    with pytest.raises(UserError, match="image is not an image in a known format: it was damaged"):
        decode(b"<html>", 32)
