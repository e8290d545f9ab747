"""Image files are read only below their folder, and only if they have the format and the size of a photo."""

import io
import struct
import zlib

import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.data import encoded_images
from spo_jax.data.encoded_images import BadImage, file_below, open_image, read_image_file
from spo_jax.data.preferences.check import RawPair, check
from spo_jax.data.preferences.images import decode
from tests.support import fuzzing


def png_of_zeros(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, which takes a thousandth of its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join([packer.compress(bytes(1 + -(-width // 8))) for _ in range(height)] + [packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(form: str, size: tuple[int, int] = (24, 16)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (250, 10, 10)).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_of_zeros(9000, 9000), "is 9000 x 9000 pixels: expected at most 67108864 of them"),
        (png_of_zeros(14000, 13000), "has more than 67108864 pixels"),
        (png_of_zeros(4000, 100), "is 4000 x 100 pixels: one side is more than 32 times the other"),
        (saved("EPS"), "is not an image in a known format"),
        (b"", "is not an image in a known format"),
    ],
)
def test_images_that_are_none_or_too_large_are_refused_before_they_are_decoded(data, message, recwarn):
    """For all who read images: the check of preference pairs, and the loader."""
    with pytest.raises(BadImage, match=message):
        open_image(data)
    with pytest.raises(UserError, match=f"a.png {message}: replace it"):
        decode(data, 8, "a.png", "replace it")
    if data:
        assert check(RawPair("row 1", (data, data), "a", (1, 0))) == f"jpg_0 {message}"


def test_photos_are_opened():
    for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"):
        assert open_image(saved(form)).size == (24, 16)


def test_links_within_the_data_and_those_of_the_hub_s_cache_are_followed(tmp_path):
    """A snapshot in the cache consists of links to the blobs of its repository."""
    snapshot = tmp_path / "datasets--owner--name" / "snapshots" / "0123"
    (snapshot / "images").mkdir(parents=True)
    blob = tmp_path / "datasets--owner--name" / "blobs" / "4567"
    blob.parent.mkdir()
    blob.write_bytes(b"content")
    (snapshot / "a.png").symlink_to(blob)
    (snapshot / "images" / "b.png").symlink_to(snapshot / "a.png")
    for name in ("a.png", "images/b.png"):
        assert read_image_file(file_below(snapshot, name)) == b"content"
    with pytest.raises(BadImage, match="a link that leads out of"):
        file_below(snapshot / "images", "b.png")


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_images, "MAX_BYTES", 2**20)
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**20 + 1)
    with pytest.raises(BadImage, match="takes 1.0 MiB: expected at most 1 MiB"):
        file_below(tmp_path, "a.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_images_damaged_at_random_are_read_or_refused(form):
    good = saved(form)
    for case in fuzzing.cases(40):
        data = fuzzing.damaged(case, good)
        pixels = fuzzing.read_or_refused(case, lambda data=data: decode(data, 8, "a", "replace it"), megabytes=600)
        assert pixels is None or pixels.shape == (8, 8, 3)
