"""Pick-a-Pic (v1, v2 and data sets with its columns) from parquet files, with a few rows in memory at a time."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.data.preferences import parquet
from spo_jax.data.preferences.check import ImageFile, RawPair
from spo_jax.data.preferences.sources import ParquetOptions

_REQUIRED = ("jpg_0", "jpg_1", "caption", "label_0", "label_1")
_OPTIONAL = ("has_label", "are_different", "image_0_uid", "image_1_uid", "num_example_per_prompt")


@dataclasses.dataclass(frozen=True)
class Options(ParquetOptions):
    """Names the files to read."""

    EXPECTED: ClassVar = "a folder or a hub id"


def open_source(options: Options, splits: Sequence[str], fetch: Callable[..., Path]) -> "PickAPic":
    """Opens a local folder, or downloads the files of the splits from the hub."""
    is_local = local_path(options.source).exists()
    if is_local and options.revision:
        raise UserError(
            f"--revision={options.revision} is for hub ids, and --source={options.source} is a local folder"
        )
    wanted = parquet.patterns(tuple(splits) or parquet.SPLITS)
    folder = fetch(options.source, options.revision or None, allow_patterns=wanted, repo_type="dataset")
    return PickAPic(folder, "" if is_local else options.source, options.revision, options.partial)


class PickAPic:
    """A `Source`: a folder with ``data/train-00000-of-00645-….parquet``, ``train/….parquet`` or ``train.parquet``.

    Images are bytes, or structs of ``bytes`` and ``path`` as the datasets library writes them.

    Args:
      folder: the folder.
      name: name of the data for the record, such as a hub id; the folder's path if empty.
      revision: revision of the hub id.
      partial: whether to read the files that exist if the names of the files show that some are missing.

    Raises:
      UserError: there are no parquet files, or pyarrow is not installed.
    """

    def __init__(self, folder: Path, name: str = "", revision: str = "", partial: bool = False):
        parquet.import_pyarrow()
        if not folder.is_dir():
            raise UserError(f"--source={folder} is not a folder: expected one with parquet files")
        self._folder = folder
        self._partial = partial
        self._origin = {"dataset": "pick_a_pic", "source": name or str(folder.resolve()), "revision": revision}
        self._files = parquet.files_by_split(folder)
        if not self._files:
            raise UserError(
                f"--source={name or folder} has no parquet files of a split: expected names such as "
                "data/train-00000-of-00645.parquet, train/0000.parquet or train.parquet"
            )

    def splits(self) -> tuple[str, ...]:
        """Returns the splits that have files."""
        return tuple(self._files)

    def usual_splits(self) -> tuple[str, ...]:
        """Returns those of `parquet.SPLITS` that have files, or all splits if none of them has."""
        return tuple(split for split in parquet.SPLITS if split in self._files) or self.splits()

    def made_from(self, split: str) -> dict[str, Any]:
        """Returns the folder or hub id, and a digest of the files' names and sizes.

        The files are too large for a digest of their content, which would have to be read twice.

        Raises:
          UserError: a file cannot be read.
        """
        digest = hashlib.sha256()
        files = self._files[split]
        for path in files:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror or error}") from error
            digest.update(f"{path.relative_to(self._folder).as_posix()} {size}\n".encode())
        return self._origin | {"files": f"{len(files)} (digest of names and sizes {digest.hexdigest()[:16]})"}

    def count(self, split: str) -> int:
        """Counts the rows.

        Raises:
          UserError: a file is missing, damaged or has other columns.
        """
        parquet.check_complete(split, self._files[split], self._partial)
        return sum(parquet.open_file(file, _REQUIRED).metadata.num_rows for file in self._files[split])

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the pairs.

        Raises:
          UserError: a file is damaged.
        """
        for path in self._files[split]:
            name = path.relative_to(self._folder).as_posix()
            for number, row in enumerate(parquet.rows(path, _REQUIRED, _OPTIONAL)):
                yield self._raw(row, f"{name}, row {number}")

    def _raw(self, row: dict[str, Any], where: str) -> RawPair:
        """Converts a row of a parquet file, which is not checked."""

        def value_of(name: str, default: Any) -> Any:
            value = row.get(name)
            return default if value is None else value

        return RawPair(
            where=where,
            images=(self._image(row["jpg_0"]), self._image(row["jpg_1"])),
            caption=row["caption"],
            labels=(row["label_0"], row["label_1"]),
            has_label=bool(value_of("has_label", True)),
            are_different=None if row.get("are_different") is None else bool(row["are_different"]),
            uids=(str(value_of("image_0_uid", "")), str(value_of("image_1_uid", ""))),
            num_example_per_prompt=value_of("num_example_per_prompt", 0),
        )

    def _image(self, value: Any) -> Any:
        """Returns the bytes or the file of an image."""
        if not isinstance(value, dict):
            return value
        if value.get("bytes") is not None or not value.get("path"):
            return value.get("bytes")
        return ImageFile(self._folder, value["path"])
