"""Reads lists of prompts: text, CSV, TSV, JSON and JSONL files, and the lists of the toy world."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from absl import logging

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.words import counted, excerpt
from spo_jax.data.lines import decoded_lines, numbered_lines, text_of
from spo_jax.data.tables import SEPARATORS, tab_rows, table_rows
from spo_jax.toy import world

TOY = {f"{toy.NAME}:train": world.TRAIN_PROMPTS, f"{toy.NAME}:held_out": world.HELD_OUT_PROMPTS}
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl")
KEYS = ("caption", "prompt", "text")
GROUP = "group"
EXPECTED = f"a non-empty string, or an object with one under {' or '.join(KEYS)}"


def load_prompts(source: str | os.PathLike) -> list[str]:
    """Reads a list of prompts.

    Args:
      source: ``toy:train``, ``toy:held_out`` or a file: ``.txt`` (one prompt per line), ``.jsonl`` (a string or an
        object per line), ``.json`` (a list of strings or objects), ``.csv`` or ``.tsv`` (a header, and a prompt per
        row; fields of ``.tsv`` have no quotes). Objects hold the prompt under ``caption``, ``prompt`` or ``text``, and
        rows in the column of this name or in their only column.

    Raises:
      UserError: the file does not exist or has another format, an entry has no prompt, or there are no prompts at all.
    """
    return load_grouped_prompts(source)[0]


def load_grouped_prompts(source: str | os.PathLike) -> tuple[list[str], list[str]]:
    """Reads a list of prompts and the group of each, which objects and rows may hold under ``group``.

    Args:
      source: as in `load_prompts`.

    Returns:
      The prompts, and as many groups; the group is empty where an entry names none.

    Raises:
      UserError: as `load_prompts`.
    """
    if str(source) in TOY:
        return list(TOY[str(source)]), [""] * len(TOY[str(source)])
    path = local_path(source)
    if path.is_dir():
        raise UserError(f"{path} is a folder: expected a prompt file that ends in .txt, .json, .jsonl, .csv or .tsv")
    if not path.is_file():
        raise UserError(
            f"no prompt file {path}: check the path. The head of a config says how its lists are fetched "
            f"(python -m spo_jax.prepare --dataset=prompts …); the toy's are {' and '.join(TOY)}"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read prompts from {path}: {error.strerror or error}") from error
    prompts, groups = [], []
    for where, entry in _entries(content, str(path)):
        prompt = prompt_of(entry)
        if prompt is None:
            raise UserError(f"{path}, {where}: expected {EXPECTED}")
        prompts.append(prompt)
        groups.append(group_of(entry))
    if not prompts:
        raise UserError(f"{path} holds no prompts: expected at least one")
    return prompts, groups


def parse_entries(content: bytes, name: str) -> list[Any]:
    """Parses the content of a prompt file; its entries are not checked.

    Args:
      content: the bytes of the file, UTF-8 with or without a byte-order mark, which editors on Windows write.
      name: path or address of the file, which says what it is by its end.

    Raises:
      UserError: the name has another end, or the content is not what it says.
    """
    return [entry for _, entry in _entries(content, name)]


def _entries(content: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the entries of `parse_entries` and where each of them is: its line, or its number in a JSON list."""
    suffix = PurePosixPath(name).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"{name}: expected a prompt file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if suffix in (".csv", ".tsv"):
        yield from _rows(content, name)
        return
    if suffix == ".json":
        entries = _parse_json("".join(decoded_lines(content, name)), name)
        if not isinstance(entries, list):
            raise UserError(f"{name}: expected a JSON list of prompts, found {type(entries).__name__}")
        yield from ((f"entry {number}", entry) for number, entry in enumerate(entries, 1))
        return
    for number, raw in numbered_lines(io.BytesIO(content)):
        line = text_of(raw, f"{name}, line {number}")
        if suffix == ".jsonl":
            yield f"line {number}", _parse_json(line, f"{name}, line {number}")
        elif line.strip():
            yield f"line {number}", line.strip()


def _rows(content: bytes, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a table as objects, by the small letters of its header, each with the line of its begin."""
    has_tabs = PurePosixPath(name).suffix == ".tsv"
    header = None
    for number, row in tab_rows(content, name) if has_tabs else table_rows(content, name):
        where = f"line {number}"
        if header is None:
            header = [field.strip().lower() for field in row]
            column = _column(row, f"{name}, {where}", has_tabs)
            key = header[column] if header[column] in KEYS else KEYS[0]
        elif len(row) != len(header):
            quotes = ": a prompt with a comma has to stand in quotes"
            raise UserError(
                f"{name}, {where}: {counted(len(row), 'field')}, and the header has {len(header)}"
                f"{'' if has_tabs else quotes}"
            )
        else:
            yield where, dict(zip(header, row, strict=True)) | {key: row[column].strip()}


def _column(header: list[str], where: str, has_tabs: bool) -> int:
    """Returns the number of the column with the prompts."""
    names = [name.strip().lower() for name in header]
    found = next((names.index(key) for key in KEYS if key in names), None)
    if found is not None:
        return found
    if len(header) > 1:
        columns = ", ".join(map(excerpt, header))
        raise UserError(f"{where}: expected a header with a column {' or '.join(KEYS)}, found {columns}")
    expected = "\t" if has_tabs else ","
    for separator, plural in SEPARATORS.items():
        if separator == expected:
            continue
        parts = [part.strip(' "').lower() for part in header[0].split(separator)]
        if len(parts) > 1 and any(key in parts for key in KEYS):
            raise UserError(f"{where}: columns are separated by {plural}: expected {SEPARATORS[expected]}")
    logging.warning(
        "%s: %s is taken for the header; if it is a prompt, write prompt above it", where, excerpt(header[0])
    )
    return 0


def prompt_of(entry: Any) -> str | None:
    """Returns the prompt of an entry, which is a string or an object; None if it is not `EXPECTED`."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in KEYS if key in entry), None)
    if not isinstance(entry, str) or not entry.strip():
        return None
    # JSON can spell half of a character (a lone surrogate), which no file can hold.
    return entry if entry.encode(errors="ignore").decode() == entry else None


def group_of(entry: Any, key: str = GROUP) -> str:
    """Returns the group of an entry, which is empty unless the entry is an object with one.

    Args:
      entry: a string, or an object.
      key: what the group is called in objects; rows of tables have it in small letters.
    """
    group = entry.get(key) if isinstance(entry, dict) else None
    return "" if group is None else str(group).strip()


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where}: not JSON that can be read: too many lists or objects inside each other") from error
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error
