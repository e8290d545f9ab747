"""Parquet files of splits, named as the datasets library exports them, with a few rows in memory at a time."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spo_jax.core.errors import UserError

SPLITS = ("train", "validation_unique", "test_unique")  # the splits that preference models are trained and measured on
_PART = re.compile(r"(?P<split>\w+)-(?P<part>\d+)-of-(?P<parts>\d+)(-.*)?")
_ROWS = 64  # number of rows read at a time; a row with images is about 200 KB


def patterns(splits: Sequence[str]) -> list[str]:
    """Returns globs for the files of some splits, in the form that the hub's client takes."""
    shapes = ("{}-*.parquet", "*/{}-*.parquet", "{}.parquet", "*/{}.parquet", "{}/*.parquet", "*/{}/*.parquet")
    return [shape.format(split) for split in splits for shape in shapes]


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """Maps each split to its files in order: ``data/train-00000-of-00645.parquet``, ``train/0.parquet``, …"""
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


def check_complete(split: str, files: Sequence[Path], partial: bool = False) -> None:
    """Checks that no file is missing or duplicated, from names such as ``train-00003-of-00645``.

    Args:
      split: name of the split, for messages.
      files: the files of the split.
      partial: whether files may be missing.

    Raises:
      UserError: files are missing, or belong to several exports.
    """
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


def open_file(path: Path, required: Sequence[str]) -> Any:
    """Opens a parquet file, as pyarrow's `ParquetFile`.

    Raises:
      UserError: pyarrow is not installed, or the file is damaged or lacks a required column.
    """
    pyarrow = import_pyarrow()
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(_damaged(path, error)) from error
    missing = [name for name in required if name not in file.schema_arrow.names]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}: expected Pick-a-Pic's, found {', '.join(file.schema_arrow.names)}"
        )
    return file


def rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yields the rows of a parquet file, with the required columns and those of the optional ones that exist.

    Raises:
      UserError: as `open_file`.
    """
    pyarrow = import_pyarrow()
    file = open_file(path, required)
    columns = [name for name in (*required, *optional) if name in file.schema_arrow.names]
    try:
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(_damaged(path, error)) from error


def import_pyarrow() -> Any:
    """Imports pyarrow with its reader of parquet files, for which alone it is needed.

    Raises:
      UserError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("reading parquet files needs pyarrow: run pip install pyarrow") from error
    return pyarrow


def _damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"cannot read {path} as parquet ({reason}): it is damaged or cut off; download it again"
