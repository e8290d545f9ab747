"""A folder of numbered PNGs that carry their prompt and settings in text fields."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, local_path
from spo_jax.core.images import write_png
from spo_jax.core.typing import UInt8

# Longer numbers are dates that other programs give, and counting on from them would be absurd.
_NUMBERED = re.compile(r"(?:grid-)?(\d{4,7})\.png")


class ImageFolder:
    """Writes images as ``0000.png``, ``0001.png`` and so on, each of them whole or not at all.

    A name is taken by an empty file, which stays behind only if the process is killed while it writes this image.

    Args:
      folder: the folder, which is created with the first image.
      overwrite: whether to begin with ``0000.png`` and replace images; otherwise names count on from the highest number
        in the folder, and no file is ever replaced, not even one that another process has written in the meantime.

    Attributes:
      first: number of the image with index 0.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, overwrite: bool = False):
        self._folder = local_path(folder)
        self._overwrite = overwrite
        check_writable(folder)
        self.first = 0 if overwrite else self._next_number()

    def write(self, index: int, image: UInt8[np.ndarray, "h w 3"], fields: Mapping[str, Any]) -> Path:
        """Writes an image.

        Args:
          index: number of the image, counted from `first`.
          image: the image.
          fields: text fields of the PNG.

        Raises:
          UserError: the file cannot be written.
        """
        while True:
            path = self._folder / f"{self.first + index:04d}.png"
            if self._overwrite or _reserve(path):
                break
            # Another process writes to this folder, or the names go beyond the numbers that are counted.
            self.first = max(self._next_number() - index, self.first + 1)
        _write_png(path, image, fields, reserved=not self._overwrite)
        return path

    def write_sheet(self, image: UInt8[np.ndarray, "h w 3"], fields: Mapping[str, Any]) -> Path:
        """Writes a contact sheet: ``grid.png``, or ``grid-0008.png`` if there is one and images begin at 0008.

        Raises:
          UserError: the file cannot be written.
        """
        path = self._folder / "grid.png"
        reserved = not self._overwrite
        if reserved and not _reserve(path):
            path = self._folder / f"grid-{self.first:04d}.png"
            if not _reserve(path):
                raise UserError(f"{path} exists already: another program wrote it while the images were drawn")
        _write_png(path, image, fields, reserved)
        return path

    def _next_number(self) -> int:
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        matches = [match for match in map(_NUMBERED.fullmatch, names) if match]
        return max((int(match[1]) for match in matches), default=-1) + 1


def _reserve(path: Path) -> bool:
    """Creates an empty file to be replaced; returns False if there is a file of this name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return True


def _write_png(path: Path, image: np.ndarray, fields: Mapping[str, Any], reserved: bool) -> None:
    # Names of files may be no Unicode.
    texts = {key: str(value).encode(errors="replace").decode() for key, value in fields.items()}
    try:
        write_png(path, image, texts)
    except BaseException:
        if reserved:  # Nothing but the empty file is there.
            path.unlink(missing_ok=True)
        raise
