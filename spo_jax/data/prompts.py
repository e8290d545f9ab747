"""Reads lists of prompts: text, JSON and JSONL files, and the lists of the toy world."""

import json
import os
from pathlib import Path

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.toy import world

TOY = {f"{toy.NAME}:train": world.TRAIN_PROMPTS, f"{toy.NAME}:held_out": world.HELD_OUT_PROMPTS}
_KEYS = ("caption", "prompt", "text")


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
        raise UserError(f"no prompt file {path} (toy lists: {', '.join(TOY)})")
    try:
        entries = _entries(path)
    except (UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
        raise UserError(f"cannot read prompts from {path}: {error}") from error
    prompts = [_prompt(entry, f"{path}, entry {index}") for index, entry in enumerate(entries, 1)]
    if not prompts:
        raise UserError(f"{path} holds no prompts: expected at least one")
    return prompts


def _entries(path: Path) -> list:
    """Reads the entries of a file, which are not checked."""
    if path.suffix == ".json":
        entries = read_json(path)
        if not isinstance(entries, list):
            raise UserError(f"{path}: expected a JSON list of prompts, found {type(entries).__name__}")
        return entries
    text = path.read_text(encoding="utf-8-sig")  # Editors on Windows write a byte-order mark before the first prompt.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in lines]
    if path.suffix == ".txt":
        return lines
    raise UserError(f"{path}: expected a prompt file that ends in .txt, .json or .jsonl")


def _prompt(entry, where: str) -> str:
    """Returns the prompt of an entry, which is a string or an object."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in _KEYS if key in entry), None)
    if not isinstance(entry, str) or not entry.strip():
        raise UserError(f"{where}: expected a non-empty string, or an object with one under {' or '.join(_KEYS)}")
    return entry
