"""Prepared preference pairs: ``DIR/SPLIT``, as `spo_jax.prepare` writes it.

In the folder of a split: array_record files (tensorflow-datasets' layout, `tfds.builder_from_directory` reads them),
``prompts.json`` (its captions, once each), ``index.npz`` (all but pictures, in the records' order) and
``prepared.json``. The folder gets its name when all of that is in it, so a split is whole or not there.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json, read_json_object
from spo_jax.core.typing import Bool, Float, Int

INDEX, PROMPTS, RECORD = "index.npz", "prompts.json", "prepared.json"
FORMAT = 1
IMAGES = ("jpg_0", "jpg_1")


@dataclasses.dataclass(frozen=True, eq=False)
class Preferences:
    """A prepared split; picklable, pictures are read from disk when they are asked for.

    Attributes:
      prompts: the captions, once each. prompt: which of them is each pair's.
      labels: of the first and the second picture: 1 and 0, 0 and 1, or 0.5 and 0.5.
      count: pairs of the same prompt, as Pick-a-Pic says it (``num_example_per_prompt``), else counted in the split.
      has_label: whether somebody judged the pair. are_different: whether the pictures differ.
      digest: of the split's content, in order: what a cache or a checkpoint is bound to.
    """

    folder: Path
    split: str
    prompts: tuple[str, ...]
    prompt: Int[np.ndarray, " n"]
    labels: Float[np.ndarray, "n 2"]
    count: Int[np.ndarray, " n"]
    has_label: Bool[np.ndarray, " n"]
    are_different: Bool[np.ndarray, " n"]
    digest: str

    def __len__(self) -> int:
        return len(self.prompt)

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Both pictures of a pair as files' contents (JPEG, PNG, …); may be called from many threads.

        Raises:
          UserError: the record cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} pairs")
        try:
            record = self._records[int(row)]
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.folder}: pair {row} cannot be read ({error}): {_AGAIN}") from error
        return record["jpg_0"], record["jpg_1"]

    @functools.cached_property
    def _records(self) -> Any:
        return open_records(self.folder, self.split)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files."""
        return {name: value for name, value in self.__dict__.items() if name != "_records"}


_MAKE = "`python -m spo_jax.prepare` makes it"
_AGAIN = "damaged since it was prepared; delete the folder and prepare it again"


def open_records(folder: Path, split: str) -> Any:
    """The records of a split as tensorflow-datasets reads them, but that pictures stay encoded.

    Raises:
      UserError: tensorflow-datasets is not installed.
    """
    tfds = import_tfds()
    keep = {name: tfds.decode.SkipDecoding() for name in IMAGES}
    return tfds.builder_from_directory(folder).as_data_source(split, decoders=keep)


def import_tfds() -> Any:
    """tensorflow-datasets, or a `UserError` that says how to get it."""
    try:
        import array_record.python.array_record_data_source  # noqa: F401  (tfds would ask for it too late)
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"preference pairs need tensorflow-datasets and array_record ({error}): pip install spo_jax[data]"
        ) from error
    return tensorflow_datasets


def open_preferences(data_dir: str | os.PathLike, split: str) -> Preferences:
    """A prepared split.

    Raises:
      UserError: no such folder or split, or it is not whole.
    """
    data_dir = Path(data_dir)
    folder = data_dir / split
    if not data_dir.is_dir():
        raise UserError(f"no folder {data_dir} with prepared preference pairs: {_MAKE}")
    if not folder.is_dir():
        there = ", ".join(prepared_splits(data_dir)) or "none"
        raise UserError(f"{data_dir}: no prepared split {split} (there: {there}); {_MAKE}")
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: no {RECORD} in it, so this is no split that `python -m spo_jax.prepare` finished")
    record = read_json_object(folder / RECORD)
    if record.get("format") != FORMAT:
        raise UserError(f"{folder}: prepared in format {record.get('format')}, expected {FORMAT}; prepare it again")
    _check_files(folder, record["files"])
    captions = tuple(entry["caption"] for entry in read_json(folder / PROMPTS))
    return Preferences(folder, split, captions, **_read_index(folder / INDEX), digest=record["digest"])


def prepared_splits(data_dir: Path) -> list[str]:
    """The splits in a folder that are whole."""
    return sorted(record.parent.name for record in data_dir.glob(f"[!.]*/{RECORD}"))


def _check_files(folder: Path, sizes: dict[str, int]) -> None:
    """A file that was cut off, by a full disk or in copying, is named here rather than failing hours later."""
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"missing file: {path}: {_AGAIN}")
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} bytes, expected {size}: {_AGAIN}")


def _read_index(path: Path) -> dict[str, np.ndarray]:
    names = ("prompt", "labels", "count", "has_label", "are_different")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # zipfile, zlib and numpy have errors of their own
        raise UserError(f"cannot read {path} ({error}): {_AGAIN}") from error
