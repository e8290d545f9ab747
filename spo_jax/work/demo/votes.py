"""Votes on disk, as ``prepare --dataset=folder`` reads them: ``train.jsonl``, a line per vote, and the images.

A vote counts once its line is on disk. Its images are there before the line, under names that no other vote has, and
the line is one write to the end of the file, so that a crash loses no vote that was confirmed and voters in other
processes overwrite nothing.
"""

import contextlib
import dataclasses
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.files import try_lock
from spo_jax.core.images import write_png
from spo_jax.core.json_text import BadJSON, parse_json
from spo_jax.core.typing import UInt8

VOTES = "train.jsonl"
IMAGES = "images"
LEFT, RIGHT, TIE = 0, 1, 0.5  # labels: which image is preferred
_LOCK = ".lock"
_LONGEST = 2**20  # bytes of a line
_PATIENCE = 30.0  # seconds in which another writer has to finish its line


@dataclasses.dataclass(frozen=True)
class Vote:
    """A vote on a pair of images.

    Attributes:
      prompt: the prompt of both.
      images: the left and the right image.
      label: `LEFT`, `RIGHT` or `TIE`.
      facts: what else is kept in the line, as JSON: who voted, and how the images were drawn.
    """

    prompt: str
    images: tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]
    label: int | float
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class VoteFolder:
    """A folder of votes; any number of processes may write to it.

    Args:
      folder: the folder, which is created with the first vote.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = folder / VOTES

    def add(self, vote: Vote) -> None:
        """Writes the images, then the line, and returns when all of it is on disk.

        Raises:
          UserError: something cannot be written; the vote does not count then.
        """
        name = uuid.uuid4().hex
        names = [f"{IMAGES}/{name}-{side}.png" for side in ("0", "1")]
        for file, image in zip(names, vote.images, strict=True):
            write_png(self.folder / file, image)
        entry = {"prompt": vote.prompt, "image_0": names[0], "image_1": names[1], "label": vote.label}
        entry |= {**vote.facts, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            _sync_folder(self.folder / IMAGES)
            with self._locked():
                _append(self._file, line.encode())
            _sync_folder(self.folder)
        except OSError as error:
            raise UserError(f"cannot write the vote to {self._file}: {error.strerror or error}") from error

    def read(self) -> list[dict[str, Any]]:
        """Returns the votes in the order of the lines; lines that are none are left out.

        Raises:
          UserError: the file cannot be read.
        """
        try:
            lines = self._file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"cannot read {self._file}: {error.strerror or error}") from error
        votes = []
        for line in filter(None, lines):
            with contextlib.suppress(BadJSON):
                vote = parse_json(line)
                if isinstance(vote, dict):
                    votes.append(vote)
        return votes

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Waits until no other process or thread appends a line."""
        end = time.monotonic() + _PATIENCE
        while (hold := try_lock(self.folder / _LOCK)).mine is False:
            hold.file.close()
            if time.monotonic() > end:
                raise UserError(f"{self.folder} is locked by another process for {_PATIENCE:.0f} s: try again")
            time.sleep(0.005)
        with hold.file:
            yield


def _append(path: Path, line: bytes) -> None:
    """Appends a line by one write, and waits until it is on disk; a line of which only a part fits is taken back."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        end = _mended_end(descriptor, path)
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError("the disk is full")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _mended_end(descriptor: int, path: Path) -> int:
    """Returns the length of the file, whose last line is made whole.

    A line without an end is a person's, and gets its end; or half of one, which a power failure cut and nobody was told
    of, and is removed.
    """
    size = os.fstat(descriptor).st_size
    os.lseek(descriptor, max(0, size - _LONGEST), os.SEEK_SET)
    tail = os.read(descriptor, _LONGEST).rpartition(b"\n")[2]
    if not tail:
        return size
    try:
        parse_json(tail)
    except BadJSON:
        logging.warning("%s: half of a line at its end is removed", path)
        os.ftruncate(descriptor, size - len(tail))
        return size - len(tail)
    return size + os.write(descriptor, b"\n")


def _sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk; not all systems can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
