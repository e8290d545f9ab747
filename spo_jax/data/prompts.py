"""Reads lists of prompts: text, JSON and JSONL files, and the lists of the toy world."""

import io
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.toy import world

TOY = {f"{toy.NAME}:train": world.TRAIN_PROMPTS, f"{toy.NAME}:held_out": world.HELD_OUT_PROMPTS}
SUFFIXES = (".txt", ".json", ".jsonl")
_KEYS = ("caption", "prompt", "text")
EXPECTED = f"a non-empty string, or an object with one under {' or '.join(_KEYS)}"


def load_prompts(source: str | os.PathLike) -> list[str]:
    """Reads a list of prompts.

    Args:
      source: ``toy:train``, ``toy:held_out`` or a file: ``.txt`` (one prompt per line), ``.jsonl`` (a string or an
        object per line) or ``.json`` (a list of strings or objects). Objects hold the prompt under ``caption``,
        ``prompt`` or ``text``.

    Raises:
      UserError: the file does not exist or has another format, an entry has no prompt, or there are no prompts at all.
    """
    if str(source) in TOY:
        return list(TOY[str(source)])
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"no prompt file {path}: python -m spo_jax.prepare --dataset=prompts fetches lists, and the toy's are "
            f"{' and '.join(TOY)}"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read prompts from {path}: {error.strerror or error}") from error
    prompts = []
    for number, entry in enumerate(parse_entries(content, str(path)), 1):
        prompt = prompt_of(entry)
        if prompt is None:
            raise UserError(f"{path}, entry {number}: expected {EXPECTED}")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path} holds no prompts: expected at least one")
    return prompts


def parse_entries(content: bytes, name: str) -> list[Any]:
    """Parses the content of a prompt file; its entries are not checked.

    Args:
      content: the bytes of the file, UTF-8 with or without a byte-order mark, which editors on Windows write.
      name: path or address of the file, which says what it is by its end.

    Raises:
      UserError: the name has another end, or the content is not what it says.
    """
    suffix = PurePosixPath(name).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"{name}: expected a prompt file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read prompts from {name}: byte {error.start} is not UTF-8") from error
    if suffix == ".json":
        entries = _parse_json(text, f"cannot read {name} as JSON")
        if not isinstance(entries, list):
            raise UserError(f"{name}: expected a JSON list of prompts, found {type(entries).__name__}")
        return entries
    # Not str.splitlines, which also ends lines where JSON allows a character, such as U+2028.
    lines = [(number, line.strip()) for number, line in enumerate(io.StringIO(text, newline=None), 1) if line.strip()]
    if suffix == ".txt":
        return [line for _, line in lines]
    problem = f"cannot read prompts from {name}: line"
    return [_parse_json(line, f"{problem} {number} is not JSON") for number, line in lines]


def prompt_of(entry: Any) -> str | None:
    """Returns the prompt of an entry, which is a string or an object; None if it is not `EXPECTED`."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in _KEYS if key in entry), None)
    if not isinstance(entry, str) or not entry.strip():
        return None
    # JSON can spell half of a character (a lone surrogate), which no file can hold.
    return entry if entry.encode(errors="ignore").decode() == entry else None


def _parse_json(text: str, problem: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{problem}: {error}") from error
