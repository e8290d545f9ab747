"""Pick-a-Pic (v1, v2 and data sets with its columns) from parquet files, with a few rows in memory at a time."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spo_jax.core.config import setting
from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import RawPair
from spo_jax.data.preferences.sources import SourceOptions

SPLITS = ("train", "validation_unique", "test_unique")  # the splits that preference models are trained and measured on
_REQUIRED = ("jpg_0", "jpg_1", "caption", "label_0", "label_1")
_OPTIONAL = ("has_label", "are_different", "image_0_uid", "image_1_uid", "num_example_per_prompt")
_PART = re.compile(r"(?P<split>\w+)-(?P<part>\d+)-of-(?P<parts>\d+)(-.*)?")
_ROWS = 64  # number of rows read at a time; a row is about 200 KB


@dataclasses.dataclass(frozen=True)
class Options(SourceOptions):
    """Names the files to read."""

    source: str = setting("", "Read the pairs from this folder (pick_a_pic: or hub id).")
    revision: str = setting("", "Use this revision of the hub id.")
    partial: bool = setting(False, "Prepare the parquet files that exist even if some are missing.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.source), "source", "a folder or a hub id")


def open_source(options: Options, splits: Sequence[str], fetch: Callable[..., Path]) -> "PickAPic":
    """Opens a local folder, or downloads the files of the splits from the hub."""
    is_local = Path(options.source).expanduser().exists()
    if is_local and options.revision:
        raise UserError(
            f"--revision={options.revision} is for hub ids, and --source={options.source} is a local folder"
        )
    wanted = patterns(tuple(splits) or SPLITS)
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
        _import_parquet()
        if not folder.is_dir():
            raise UserError(f"--source={folder} is not a folder: expected one with parquet files")
        self._folder = folder
        self._partial = partial
        self._origin = {"dataset": "pick_a_pic", "source": name or str(folder.resolve()), "revision": revision}
        self._files = _by_split(folder)
        if not self._files:
            raise UserError(
                f"--source={name or folder} has no parquet files of a split: expected names such as "
                "data/train-00000-of-00645.parquet, train/0000.parquet or train.parquet"
            )

    def splits(self) -> tuple[str, ...]:
        """Returns the splits that have files."""
        return tuple(self._files)

    def usual_splits(self) -> tuple[str, ...]:
        """Returns those of `SPLITS` that have files, or all splits if none of them has."""
        return tuple(split for split in SPLITS if split in self._files) or self.splits()

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
        _check_complete(split, self._files[split], self._partial)
        return sum(_open(file).metadata.num_rows for file in self._files[split])

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the pairs.

        Raises:
          UserError: a file is damaged.
        """
        import pyarrow

        for path in self._files[split]:
            file = _open(path)
            columns = [name for name in _REQUIRED + _OPTIONAL if name in file.schema_arrow.names]
            name = path.relative_to(self._folder).as_posix()
            number = 0
            try:
                for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                    for row in batch.to_pylist():
                        yield self._raw(row, f"{name}, row {number}")
                        number += 1
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(_damaged(path, error)) from error

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
        """Returns the bytes or the path of an image."""
        if not isinstance(value, dict):
            return value
        if value.get("bytes") is not None or not value.get("path"):
            return value.get("bytes")
        return self._folder / value["path"]


def patterns(splits: tuple[str, ...]) -> list[str]:
    """Returns globs for the files of some splits, in the form that the hub's client takes."""
    shapes = ("{}-*.parquet", "*/{}-*.parquet", "{}.parquet", "*/{}.parquet", "{}/*.parquet", "*/{}/*.parquet")
    return [shape.format(split) for split in splits for shape in shapes]


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Maps each split to its files in order."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue  # Hidden folders are a client's cache of unfinished downloads.
        numbered = _PART.fullmatch(path.stem)
        if numbered:
            split = numbered["split"]
        elif path.stem in (*SPLITS, "validation", "test") or len(inside.parts) == 1:
            split = path.stem
        else:
            split = inside.parts[-2]
        files.setdefault(split, []).append(path)
    return files


def _check_complete(split: str, files: list[Path], partial: bool) -> None:
    """Checks that no file is missing or duplicated, from names such as ``train-00003-of-00645``."""
    numbered = [(path.parent, match) for path in files if (match := _PART.fullmatch(path.stem))]
    exports = sorted({f"{parent} (of {match['parts']})" for parent, match in numbered})
    if len(exports) > 1 or (numbered and len(numbered) < len(files)):
        raise UserError(
            f"split {split}: its parquet files belong to several exports: {', '.join(exports)}"
            f"{' and others' if len(numbered) < len(files) else ''}; keep one in --source"
        )
    if not numbered:
        return
    parts = int(numbered[0][1]["parts"])
    found = [int(match["part"]) for _, match in numbered]
    if len(set(found)) < len(found):
        raise UserError(f"split {split}: a part of {exports[0]} occurs twice; keep one export in --source")
    missing = sorted(set(range(parts)) - set(found))
    if missing and not partial:
        raise UserError(
            f"split {split}: {len(missing)} of its {parts} parquet files are missing (the first is number "
            f"{missing[0]}): download them, or prepare the others with --partial"
        )


def _open(path: Path) -> Any:
    """Opens a parquet file and checks its columns."""
    import pyarrow

    try:
        file = _import_parquet().ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(_damaged(path, error)) from error
    missing = [name for name in _REQUIRED if name not in file.schema_arrow.names]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}: expected Pick-a-Pic's, found {', '.join(file.schema_arrow.names)}"
        )
    return file


def _damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"cannot read {path} as parquet ({reason}): it is damaged or cut off; download it again"


def _import_parquet() -> Any:
    """Imports pyarrow, which only this source needs."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("reading parquet files needs pyarrow: pip install spo_jax[data]") from error
    return pyarrow.parquet
