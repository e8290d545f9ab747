"""A folder of images with captions, as people keep them for fine-tuning.

Captions stand in ``metadata.jsonl`` (a line ``{"file_name": "a.png", "text": "a red star"}`` per image, as the datasets
library reads it; ``prompt`` and ``caption`` are read too), or beside each image in a text file of its name.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spo_jax.core.config import shown
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.json_text import parse_json
from spo_jax.core.typing import UInt8
from spo_jax.data.encoded_images import BadImage, check_header, file_below, read_image_file
from spo_jax.data.lines import decoded_lines, read_lines
from spo_jax.data.preferences.images import decode

METADATA = "metadata.jsonl"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_KEYS = ("text", "caption", "prompt")


@dataclasses.dataclass(frozen=True)
class CaptionedImages:
    """Images and captions in a fixed order; images are read when they are asked for.

    Attributes:
      files: one per image.
      captions: one per image.
      digest: digest of names, sizes and captions.
    """

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.files)

    def image(self, row: int, side: int) -> UInt8[np.ndarray, "side side 3"]:
        """The middle square of an image, resized to ``side`` pixels.

        Raises:
          UserError: the file cannot be read or is not an image.
        """
        try:
            data = read_image_file(self.files[row])
        except BadImage as error:
            raise UserError(f"{self.files[row]} {error}") from error
        return decode(data, side, str(self.files[row]), "replace or remove it")


def open_captioned_images(folder: str | os.PathLike) -> CaptionedImages:
    """Lists the images of a folder and reads their captions.

    Raises:
      UserError: no such folder, no image with a caption in it, an image without one, a file that is no image or
        has too many pixels, or a line that cannot be read.
    """
    folder = local_path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder} with images and captions")
    entries = list(captions_of_manifest(folder) if (folder / METADATA).is_file() else _from_text_files(folder))
    if not entries:
        raise UserError(f"{folder} holds no images; expected {', '.join(_SUFFIXES)} with captions")
    digest = hashlib.sha256()
    for file, caption in entries:
        try:
            check_header(file)  # before hours of training, not in the middle of it
        except BadImage as error:
            raise UserError(f"{file} {error}: replace or remove it") from error
        digest.update(f"{file.name} {file.stat().st_size} {caption}\n".encode())
    files, captions = zip(*entries, strict=True)
    return CaptionedImages(files, captions, digest.hexdigest())


def captions_of_manifest(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields the images that a folder's ``metadata.jsonl`` names, and their captions.

    Raises:
      UserError: a line cannot be read, or names no file below the folder.
    """
    file = folder / METADATA
    for number, line in read_lines(file):
        try:
            entry = parse_json(line)
            name = entry["file_name"]
            caption = next(entry[key] for key in _KEYS if key in entry)
        except (ValueError, TypeError, KeyError, StopIteration) as error:
            raise UserError(f"{file}, line {number}: expected an object with file_name and text") from error
        if not isinstance(name, str):
            raise UserError(f"{file}, line {number}: file_name is {shown(name)}, expected a string")
        if not isinstance(caption, str):
            raise UserError(f"{file}, line {number}: the text of {name[:100]} is {shown(caption)}, expected a string")
        try:
            yield file_below(folder, name), caption
        except BadImage as error:
            raise UserError(f"{file}, line {number}: file_name {error}") from error


def image_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that are images by their names, in order.

    Hidden ones are left out: they are what other systems leave beside images.
    """
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
    )


def _from_text_files(folder: Path) -> Iterator[tuple[Path, str]]:
    for file in image_files(folder):
        text = file.with_suffix(".txt")
        if not text.is_file():
            raise UserError(f"{file} has no caption: expected {text.name} beside it, or {METADATA} for all images")
        try:
            yield file_below(folder, file.name), _caption(file_below(folder, text.name))
        except BadImage as error:
            raise UserError(f"{file} or its caption {error}") from error


def _caption(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    return "".join(decoded_lines(content, str(file))).replace("\r\n", "\n").strip()
