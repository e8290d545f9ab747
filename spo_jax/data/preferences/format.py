"""Prepared preference pairs in ``DIR/SPLIT``, as `spo_jax.prepare` writes them.

The folder of a split holds array_record files (in the layout of tensorflow-datasets, which
`tfds.builder_from_directory` reads), ``prompts.json`` (each of its captions once), ``index.npz`` (every column that
stays in memory, in the order of the records) and ``prepared.json``. The folder gets its name only when it holds all of
these files, so that a split is either complete or absent.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from spo_jax.core.errors import UserError, missing_extra
from spo_jax.core.files import local_path, read_json, read_json_object
from spo_jax.core.typing import Bool, Float, Int

INDEX = "index.npz"
PROMPTS = "prompts.json"
RECORD = "prepared.json"
FORMAT = 1
IMAGES = ("jpg_0", "jpg_1")
# Entries of what a split was made from: its filter, and that of the prepared split that it was read from.
FILTER = "filter"
FILTERED_BEFORE = "filtered before"


@dataclasses.dataclass(frozen=True, eq=False)
class Preferences:
    """A prepared split, which is picklable and reads images from disk on demand.

    Attributes:
      folder: folder of the split.
      split: name of the split.
      prompts: the captions, each once.
      prompt: index into ``prompts`` of each pair's caption.
      labels: labels of the first and of the second image: 1 and 0, 0 and 1, or 0.5 and 0.5.
      count: number of pairs with the same prompt, as Pick-a-Pic says it (``num_example_per_prompt``); counted in the
        split if the source does not say.
      has_label: whether somebody judged the pair.
      are_different: whether the images differ.
      digest: digest of the split's content, in order; caches and checkpoints are bound to it.
      rule: the rule by which its pairs were filtered when it was prepared, in words; empty if they were not.
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
    rule: str = ""

    def __len__(self) -> int:
        return len(self.prompt)

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Returns the contents of both image files of a pair (JPEG, PNG, …); many threads may call it.

        Raises:
          UserError: the record cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is out of range for {len(self)} pairs")
        try:
            record = self._records[int(row)]
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.folder}: pair {row} cannot be read ({error}): {_AGAIN}") from error
        return record["jpg_0"], record["jpg_1"]

    @functools.cached_property
    def _records(self) -> Any:
        return open_records(self.folder, self.split)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state to pickle, which leaves out the open files."""
        return {name: value for name, value in self.__dict__.items() if name != "_records"}


_MAKE = (
    "`python -m spo_jax.prepare` creates it (that of the toy's people: `python -m spo_jax.build_toy.people "
    "--out=data/toy_people`)"
)
_AGAIN = "the split was damaged after it was prepared; delete the folder and prepare it again"


def open_records(folder: Path, split: str) -> Any:
    """Opens the records of a split with tensorflow-datasets, except that images stay encoded.

    Raises:
      UserError: tensorflow-datasets is not installed.
    """
    tfds = import_tfds()
    keep = {name: tfds.decode.SkipDecoding() for name in IMAGES}
    return tfds.builder_from_directory(folder).as_data_source(split, decoders=keep)


def import_tfds() -> Any:
    """Imports tensorflow-datasets.

    Raises:
      UserError: tensorflow-datasets or array_record is not installed.
    """
    try:
        import array_record.python.array_record_data_source  # noqa: F401  (tfds would import it too late)
        import tensorflow_datasets
    except ImportError as error:
        raise missing_extra(f"preference pairs need tensorflow-datasets and array_record ({error})", "data") from error
    return tensorflow_datasets


def open_preferences(data_dir: str | os.PathLike, split: str, field: str = "") -> Preferences:
    """Opens a prepared split.

    Args:
      data_dir: folder with prepared splits.
      split: name of the split.
      field: config field that names the split, for messages; a training's log then says by what rule it was filtered.

    Raises:
      UserError: the folder or the split does not exist, or the split is incomplete or damaged.
    """
    # Find the folder of the split.
    data_dir = local_path(data_dir)
    folder = data_dir / split
    if not data_dir.is_dir():
        raise UserError(f"no folder {data_dir} with prepared preference pairs; {_MAKE}")
    if not folder.is_dir():
        splits = prepared_splits(data_dir)
        message = f"{data_dir}: no prepared split {split} (available: {', '.join(splits) or 'none'}); "
        if splits and field:
            message = f"config field {field} = {split!r}: {message}choose one with --config.{field}={splits[-1]}, or "
        raise UserError(f"{message}{_MAKE}")

    # Check that it is complete and in this format.
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: it has no {RECORD}, so `python -m spo_jax.prepare` did not finish this split")
    record = read_json_object(folder / RECORD)
    if record.get("format") != FORMAT:
        raise UserError(
            f"{folder}: it was prepared in format {record.get('format')}: expected {FORMAT}; prepare it again"
        )
    files = record.get("files")
    digest = record.get("digest")
    if not isinstance(files, dict) or not all(type(size) is int for size in files.values()) or type(digest) is not str:
        raise UserError(f"{folder / RECORD} has no list of files and digest: {_AGAIN}")
    _check_files(folder, files)

    entries = read_json(folder / PROMPTS)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "caption" in entry for entry in entries):
        raise UserError(f"{folder / PROMPTS} is not a list of captions: {_AGAIN}")
    captions = tuple(entry["caption"] for entry in entries)
    rule = _rule_of(record)
    if rule and field:
        logging.info("%s was filtered by scores when it was prepared (%s)", folder, rule)
    return Preferences(folder, split, captions, **_read_index(folder / INDEX), digest=digest, rule=rule)


def _rule_of(record: Mapping[str, Any]) -> str:
    """Returns the rules by which the pairs were filtered, now and in the prepared split that they were read from."""
    made_from = record.get("made_from", {})
    return "; then ".join(made_from[name] for name in (FILTERED_BEFORE, FILTER) if made_from.get(name))


def filtered_by(pairs: Any) -> dict[str, str]:
    """Returns the entry of a run's summary that names the rule by which its pairs were filtered; none if they were not.

    Args:
      pairs: a prepared split, or what takes its place.
    """
    rule = getattr(pairs, "rule", "")
    return {"pairs_filtered_by": rule} if rule else {}


def prepared_splits(data_dir: Path) -> list[str]:
    """Returns the names of the complete splits in a folder."""
    return sorted(record.parent.name for record in data_dir.glob(f"[!.]*/{RECORD}"))


def _check_files(folder: Path, sizes: dict[str, int]) -> None:
    """Raises a `UserError` for a file that is missing or has another size.

    A file that was cut off, by a full disk or while copying, would otherwise fail hours later.
    """
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"missing file: {path}: {_AGAIN}")
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} bytes, expected {size}: {_AGAIN}")


def _read_index(path: Path) -> dict[str, np.ndarray]:
    """Reads the columns that stay in memory."""
    names = ("prompt", "labels", "count", "has_label", "are_different")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # zipfile, zlib and numpy each raise errors of their own
        raise UserError(f"cannot read {path} ({error}): {_AGAIN}") from error
