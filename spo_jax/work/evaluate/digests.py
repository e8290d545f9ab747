"""Digests of the files from which models and LoRAs are read, which bind images to what made them."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object, write_json
from spo_jax.core.progress import stage
from spo_jax.models import families, family_module
from spo_jax.weights import hub

_LENGTH = 16  # hexadecimal digits of a fingerprint
_BLOB = re.compile(r"[0-9a-f]{64}")
_ADAPTER_CONFIG = "adapter_config.json"  # PEFT's, with alpha, beside its weights


def fingerprint(value: Mapping[str, Any]) -> str:
    """Returns a short digest of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


class Digests:
    """SHA-256 of files; those of earlier starts are kept, because models take gigabytes.

    A file whose path, size and time of change are those of an earlier start is not read again.

    Args:
      file: where they are kept.
    """

    def __init__(self, file: Path):
        self._file = file
        self._known: dict[str, Any] = {}
        if file.is_file():
            try:
                self._known = read_json_object(file)
            except UserError:  # it saves time and is no result, so that a damaged one is made anew
                self._known = {}

    def of_lora(self, file: Path) -> str:
        """Returns the digest of a LoRA's file, and of PEFT's config beside it, if there is one."""
        config = file.with_name(_ADAPTER_CONFIG)
        return self._of_files([("lora", file), *([("config", config)] if config.is_file() else [])])

    def of_model(self, path: Path, parts: Sequence[str] = ()) -> str:
        """Returns the digest of what is read of a pipeline's folder, of a part of one, or of a checkpoint in one file.

        Args:
          path: the folder or file.
          parts: subfolders that are read; empty for all that pipelines have.

        Raises:
          UserError: a file cannot be read.
        """
        if path.is_file():
            return self._of_files([("model", path)])
        parts = parts or [part for family in families() for part in family_module(family, "sources").COMPONENTS]
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        return self._of_files((name, path / name) for name in hub.select_files(names, tuple(parts)))

    def _of_files(self, files: Iterable[tuple[str, Path]]) -> str:
        """Returns a digest of files and of what each of them is."""
        return fingerprint({name: self._of_file(file) for name, file in files})

    def _of_file(self, file: Path) -> str:
        try:
            real = file.resolve()
            if real.parent.name == "blobs" and _BLOB.fullmatch(real.name):
                return real.name  # the hub's cache names large files by this very digest
            status = real.stat()
            state = [status.st_size, status.st_mtime_ns]
            known = self._known.get(str(real))
            if isinstance(known, list) and known[:2] == state:
                return known[2]
            with stage(f"reading {file} for its digest"), open(real, "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror or error}") from error
        self._known[str(real)] = [*state, digest]
        return digest

    def save(self) -> None:
        """Keeps the digests for the next start."""
        write_json(self._file, self._known)
