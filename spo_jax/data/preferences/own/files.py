"""Preferences in one file per split: JSONL, or CSV as spreadsheets write it.

A line of JSONL is ``{"prompt": "a red star", "image_0": "a.png", "image_1": "b.png", "label": 0}``. A CSV file has
columns of these names, in any order and under a header; fields stand between commas, semicolons or tabs.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.json_text import BadJSON, parse_json
from spo_jax.core.words import counted, excerpt
from spo_jax.data.lines import read_lines
from spo_jax.data.preferences.check import RawPair
from spo_jax.data.preferences.own.entries import IMAGES, LABELS, pair_of
from spo_jax.data.prompts import KEYS
from spo_jax.data.tables import SEPARATORS, table_rows

_COLUMNS = "prompt, image_0, image_1 and label (or label_0 and label_1)"


class PreferenceFiles:
    """A `Source`: ``FOLDER/train.jsonl`` is the split ``train``, and paths of images are relative to that file.

    Args:
      files: the files by name of their split, all of them JSONL or all CSV.
    """

    def __init__(self, files: Mapping[str, Path]):
        self._files = dict(files)

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the files."""
        return tuple(self._files)

    def usual_splits(self) -> tuple[str, ...]:
        """Returns all splits."""
        return self.splits()

    def made_from(self, split: str) -> dict[str, Any]:
        """Returns the folder and a digest of the file.

        Raises:
          UserError: the file cannot be read.
        """
        path = self._files[split]
        digest = hashlib.sha256(_content(path)).hexdigest()
        return {"dataset": "folder", "source": str(path.parent.resolve()), f"sha256 of {path.name}": digest}

    def count(self, split: str) -> int:
        """Counts the lines or rows that are not blank.

        Raises:
          UserError: the file cannot be read, or is a table that is not as expected.
        """
        return sum(1 for _ in self.rows(split))

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the pairs; a line or row that cannot be read becomes a row with a problem.

        Raises:
          UserError: as `count`.
        """
        path = self._files[split]
        return READERS[path.suffix](path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


# JSONL


def _jsonl_rows(path: Path) -> Iterator[RawPair]:
    for number, line in read_lines(path):
        where = f"{path.name}, line {number}"
        try:
            entry = parse_json(line)
        except BadJSON as error:
            yield RawPair(where, problem=f"the line is not JSON: {error}")
            continue
        if isinstance(entry, dict):
            yield pair_of(entry, where, path.parent)
        else:
            yield RawPair(where, problem=f"the line is {type(entry).__name__}, expected a JSON object")


# CSV


def _csv_rows(path: Path) -> Iterator[RawPair]:
    content = _content(path)
    separator, names = _header(content, path)
    rows = table_rows(content, str(path), separator)
    next(rows)  # the header
    for number, row in rows:
        where = f"{path.name}, line {number}"
        if len(row) == len(names):
            yield pair_of(_entry(names, row), where, path.parent)
        else:
            problem = f"it has {counted(len(row), 'field')}, and the header has {len(names)}"
            yield RawPair(where, problem=f"{problem}: a prompt with the separator in it has to stand in quotes")


def _header(content: bytes, path: Path) -> tuple[str, list[str]]:
    """Returns what separates the fields, and the names of the columns.

    Raises:
      UserError: the file has no header, or one without the columns of a pair.
    """
    number = 1
    found: list[str] = []
    mistakes = []
    for separator in SEPARATORS:
        try:
            number, header = next(table_rows(content, str(path), separator), (1, []))
        except UserError as error:  # names in quotes between separators of another kind
            mistakes.append(error)
            continue
        names = [name.strip().lower() for name in header]
        if set(IMAGES) <= set(names):
            _check_columns(names, f"{path}, line {number}")
            return separator, names
        found = max(found, header, key=len)
    if mistakes and not found:
        raise mistakes[0]
    shown = ", ".join(map(excerpt, found[:8])) or "nothing"
    raise UserError(f"{path}, line {number}: expected a header with the columns {_COLUMNS}, found {shown}")


def _check_columns(names: Sequence[str], where: str) -> None:
    """Refuses a table whose columns leave open what is meant."""
    known = {*KEYS, *IMAGES, "label", *LABELS}
    twice = next((name for name in names if name in known and names.count(name) > 1), None)
    if twice:
        raise UserError(f"{where}: the column {twice} is there twice: expected one")
    missing = [] if any(key in names for key in KEYS) else ["prompt"]
    missing += [] if "label" in names or set(LABELS) <= set(names) else ["label"]
    if missing:
        raise UserError(f"{where}: the header has no column {' and no column '.join(missing)}: expected {_COLUMNS}")


def _entry(names: Sequence[str], row: Sequence[str]) -> dict[str, Any]:
    """Returns a row as an entry, in which empty fields are absent and labels are numbers."""
    entry: dict[str, Any] = {name: text.strip() for name, text in zip(names, row, strict=True) if text.strip()}
    return entry | {name: _number(entry[name]) for name in ("label", *LABELS) if name in entry}


def _number(text: str) -> float | str:
    """Returns a label as a number, whose decimal point is a comma in half of the world; other text stays what it is."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return text


READERS: dict[str, Callable[[Path], Iterator[RawPair]]] = {".jsonl": _jsonl_rows, ".csv": _csv_rows}
