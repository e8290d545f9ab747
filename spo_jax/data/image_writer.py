"""Writes images while they are drawn: a file each, a contact sheet of them, and a line that says how many there are."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.images import to_uint8
from spo_jax.core.progress import bar, stage
from spo_jax.core.typing import Float
from spo_jax.core.words import counted, excerpt
from spo_jax.data.contact_sheet import ContactSheet
from spo_jax.data.image_folder import ImageFolder

_COLUMNS = 8  # largest number of images per prompt for which a row of the contact sheet is a prompt
_NAMED = 8  # images that a message names


class ImageWriter:
    """Writes images while they are drawn, and says how many there are.

    Args:
      folder: where they are written.
      prompts: one per image.
      settings: text fields of all images.
      count: images per prompt.

    Attributes:
      files: what is written.
    """

    def __init__(self, folder: ImageFolder, prompts: list[str], settings: dict[str, Any], count: int):
        self._folder = folder
        self._prompts = prompts
        self._settings = settings
        self._sheet = ContactSheet(count if 1 < count <= _COLUMNS else None)
        self._bad: list[int] = []
        self.files: list[Path] = []

    def write(self, batches: Iterable[Float[np.ndarray, "b H W 3"]]) -> None:
        """Writes the images of each batch as soon as it is drawn.

        Args:
          batches: images in [-1, 1], all of one size, in the order of the prompts; those with values that are not
            finite are not written, and `check_finite` names them.

        Raises:
          UserError: a file cannot be written.
        """
        batches = iter(batches)
        # The first batch waits for the compiler, and the bar would take it for the speed of all.
        with stage("compiling, and drawing the first images"):
            first = next(batches)
        done = self._write_batch(0, first)
        with bar("images", len(self._prompts), "image", initial=done) as shown:
            for batch in batches:
                done = self._write_batch(done, batch)
                if self._bad:
                    shown.set_postfix_str(f"{len(self._bad)} not finite", refresh=False)
                shown.update(len(batch))

    def _write_batch(self, start: int, batch: Float[np.ndarray, "b H W 3"]) -> int:
        """Writes images from number ``start`` on; returns the number of the next one."""
        for index, image in enumerate(batch, start):
            self._write(index, image)
        return start + len(batch)

    def _write(self, index: int, image: Float[np.ndarray, "H W 3"]) -> None:
        if not np.isfinite(image).all():  # It would have black pixels.
            self._bad.append(index)
            return
        prompt = self._prompts[index]
        pixels = to_uint8(image)
        file = self._folder.write(index, pixels, {"prompt": prompt, "index": index, **self._settings})
        self.files.append(file)
        self._sheet.add(file.name, prompt, pixels)

    def finish(self, out: str | os.PathLike) -> None:
        """Writes the contact sheet, if it has more than one image, and prints one line.

        After an exception, in a ``finally``, a sheet that cannot be written is only logged: the first error is the one
        to know.

        Args:
          out: the folder as the user named it.

        Raises:
          UserError: the sheet cannot be written, and nothing else went wrong before.
        """
        failed_before = sys.exc_info()[0] is not None
        total = len(self._prompts)
        whole = len(self.files) == total
        wrote = counted(total, "image") if whole else f"{len(self.files)} of {counted(total, 'image')}"
        try:
            if len(self._sheet) > 1:
                sheet = self._folder.write_sheet(self._sheet.image(), self._sheet.prompts)
                wrote += f" and {sheet.name}"
        except UserError as error:
            if not failed_before:
                raise
            logging.warning("%s", error)
        finally:
            print(f"wrote {wrote} to {out}")

    def check_finite(self) -> None:
        """Raises a `UserError` that lists the images with values that are not finite, if there are any."""
        if not self._bad:
            return
        shown = [f"{index} ({excerpt(self._prompts[index])})" for index in self._bad[:_NAMED]]
        shown += [f"{len(self._bad) - _NAMED} more"] if len(self._bad) > _NAMED else []
        raise UserError(
            f"{len(self._bad)} of {counted(len(self._prompts), 'image')} of --model={self._settings['model']} with "
            f"--guidance={self._settings['guidance']} have values that are not finite and were not written: index "
            f"{', '.join(shown)}; check the guidance, the LoRA and its strength, and try --dtype=float32"
        )
