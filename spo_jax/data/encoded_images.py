"""Image files that data sets name, and their encoded bytes, checked before anything is decoded."""

import functools
import io
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from spo_jax.core import words

MAX_PIXELS = 2**26  # 8192 x 8192; decoding takes 4 bytes for each
MAX_BYTES = 2**28
# Limit of the longer side relative to the shorter one: loading resizes the shorter side to the model's size, and the
# longer side in proportion.
LONGEST = 32
# Pillow's other formats hold no photos, and for one of them, EPS, it runs a program.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "GIF", "PPM", "TGA", "ICO", "AVIF", "JPEG2000")

# Pillow warns of more than 89 million pixels, which are refused here, and of damaged tags, which are harmless.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(ValueError):
    """The file is not one that a data set may name, or not an image; the message is what its name is followed by."""


def file_below(folder: Path, name: str) -> Path:
    """Returns the path of a file that a data set names.

    Args:
      folder: folder of the data set.
      name: the file's name, relative to it.

    Raises:
      BadImage: the name leads out of the folder, also by a link, or there is no regular file of this name.
    """
    shown = ascii(name[:200])
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadImage(f"is {shown}: expected a file below {folder}")
    path = folder / name
    try:
        if not path.resolve().is_relative_to(_boundary(folder)):
            raise BadImage(f"is {shown}, a link that leads out of {folder}")
        _check_file(path)
    except OSError as error:
        raise BadImage(f"is missing: {folder}/{shown[1:-1]}: {error.strerror or error}") from error
    except BadImage:
        raise
    except (RuntimeError, ValueError) as error:  # a link to itself; a NUL or half of a character in the name
        raise BadImage(f"is {shown}, which is no file: {error}") from error
    return path


def read_image_file(path: Path) -> bytes:
    """Reads an image file.

    Raises:
      BadImage: it is missing, not a regular file, or too large for an image.
    """
    shown = ascii(str(path)[:300])
    try:
        _check_file(path)
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"is missing: {shown[1:-1]}: {error.strerror or error}") from error
    except BadImage:
        raise
    except ValueError as error:  # a NUL or half of a character in the name
        raise BadImage(f"is missing: {shown}: {error}") from error


def _check_file(path: Path) -> None:
    size = path.stat().st_size
    if not path.is_file():  # a pipe or a device could keep whoever reads it waiting for ever
        raise BadImage(f"is not a regular file: {ascii(str(path)[:300])[1:-1]}")
    if size > MAX_BYTES:
        raise BadImage(f"takes {words.size(size)}: expected at most {words.size(MAX_BYTES)}")


def _boundary(folder: Path) -> Path:
    """Returns the folder that links may not leave; what was fetched from the hub are links into its repository."""
    folder = folder.resolve()
    return folder.parent.parent if folder.parent.name == "snapshots" else folder


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def check_header(path: Path) -> None:
    """Reads the header of an image file.

    Raises:
      BadImage: as `open_image`, or the file cannot be read.
    """
    try:
        with open(path, "rb") as file, open_image(file):
            pass
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from error


def open_image(data: bytes | BinaryIO) -> Image.Image:
    """Reads the header of an encoded image; its pixels are decoded when they are asked for.

    Args:
      data: the content of a file, or the file.

    Raises:
      BadImage: it is not a photo's format, has too many pixels, is far too narrow, or its header is damaged.
    """
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=_formats())
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("is not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"has more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise BadImage(f"cannot be decoded: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"is {width} x {height} pixels: expected at most {MAX_PIXELS} of them")
    if max(width, height) > LONGEST * min(width, height):
        raise BadImage(f"is {width} x {height} pixels: one side is more than {LONGEST} times the other")
    return image
