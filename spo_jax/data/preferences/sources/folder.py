"""A user's own preferences: a folder with one JSONL file per split, and image files.

A line is ``{"prompt": "a red star", "image_0": "a.png", "image_1": "b.png", "label": 0}``. The label says which image
is preferred, or 0.5 for a tie. ``label_0`` and ``label_1`` (1 and 0, 0 and 1, or 0.5 and 0.5) may take its place.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.json_text import BadJSON, parse_json
from spo_jax.data.lines import read_lines
from spo_jax.data.preferences.check import ImageFile, RawPair
from spo_jax.data.preferences.sources import NamedOptions
from spo_jax.data.prompts import KEYS


@dataclasses.dataclass(frozen=True)
class Options(NamedOptions):
    """Names the folder to read."""

    EXPECTED: ClassVar = "a folder"


def open_source(options: Options, splits: Sequence[str], fetch: Callable[..., Path]) -> "PreferenceFolder":
    """Opens the folder."""
    del splits, fetch
    return PreferenceFolder(local_path(options.source))


class PreferenceFolder:
    """A `Source`: ``FOLDER/train.jsonl`` is the split ``train``, and paths of images are relative to that file.

    Args:
      folder: the folder.

    Raises:
      UserError: the folder does not exist or has no JSONL file.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise UserError(f"--source={folder} is not a folder: expected one with a JSONL file per split")
        self._files = {path.stem: path for path in sorted(folder.glob("*.jsonl")) if path.is_file()}
        if not self._files:
            raise UserError(f"--source={folder} has no JSONL file: expected one per split, such as train.jsonl")
        self._folder = folder

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the JSONL files."""
        return tuple(self._files)

    def usual_splits(self) -> tuple[str, ...]:
        """Returns all splits."""
        return self.splits()

    def made_from(self, split: str) -> dict[str, Any]:
        """Returns the folder and a digest of the JSONL file.

        Raises:
          UserError: the file cannot be read.
        """
        path = self._files[split]
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        return {"dataset": "folder", "source": str(self._folder.resolve()), f"sha256 of {path.name}": digest}

    def count(self, split: str) -> int:
        """Counts the lines that are not blank.

        Raises:
          UserError: the file cannot be read.
        """
        return sum(1 for _ in self._lines(split))

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the pairs; a line that is not a JSON object becomes a row with a problem.

        Raises:
          UserError: the file cannot be read.
        """
        path = self._files[split]
        for number, line in self._lines(split):
            yield _raw(line, f"{path.name}, line {number}", path.parent)

    def _lines(self, split: str) -> Iterator[tuple[int, bytes]]:
        return read_lines(self._files[split])


def _raw(line: bytes, where: str, folder: Path) -> RawPair:
    """Converts a line of a JSONL file to a row, which is not checked."""
    try:
        entry = parse_json(line)
    except BadJSON as error:
        return RawPair(where, problem=f"the line is not JSON: {error}")
    if not isinstance(entry, dict):
        return RawPair(where, problem=f"the line is {type(entry).__name__}, expected a JSON object")
    label = entry.get("label")
    if "label" in entry and (isinstance(label, bool) or label not in (0, 0.5, 1)):
        return RawPair(where, problem=f"label is {label!r}, expected 0 or 1 (which image is preferred) or 0.5")
    return RawPair(
        where=where,
        images=(_file(entry.get("image_0"), folder), _file(entry.get("image_1"), folder)),
        caption=next((entry[key] for key in KEYS if key in entry), None),
        labels=(entry.get("label_0"), entry.get("label_1")) if label is None else (1 - label, label),
        names=("image_0", "image_1"),
    )


def _file(value: Any, folder: Path) -> ImageFile | None:
    """Returns the file of an image, or None where an entry has none."""
    return ImageFile(folder, value) if isinstance(value, str) and value else None
