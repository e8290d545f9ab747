"""Reading and writing files that are either complete or absent."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from absl import logging
from filelock import lock_descriptor

from spo_jax.core import json_text
from spo_jax.core.errors import UserError
from spo_jax.core.json_text import parse_json
from spo_jax.core.words import size

_BUCKET = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")  # gs://…, also after Path has taken a slash, but not C:/…


def local_path(name: str | os.PathLike) -> Path:
    """Returns the path that a user named, which need not exist; ``~`` is their home.

    Raises:
      UserError: nothing can have this name: there is no such user, or it is too long or has a NUL in it.
    """
    shown = ascii(os.fspath(name)[:100])
    try:
        path = Path(name).expanduser()
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whoever opens it knows better what was expected
    except RuntimeError as error:
        raise UserError(f"{shown}: there is no such user: expected a path") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{shown} cannot be a path: {getattr(error, 'strerror', None) or error}") from error
    return path


def write_atomic(path: str | os.PathLike, write: Callable[[Path], None]) -> None:
    """Calls ``write`` with a temporary path beside ``path``, then renames it, so that readers never see half a file.

    Args:
      path: path of the file; missing parent folders are created.
      write: function that writes the whole content to the path it is given.

    Raises:
      UserError: the folder or the file cannot be written; an older file at ``path`` is left unchanged.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def check_writable(folder: str | os.PathLike) -> None:
    """Checks that ``folder`` can be created and written to, without creating it.

    Commands that run for a long time before they write call this first. A file without a name is written to the nearest
    folder that exists and is gone at once: permissions alone do not say that file systems such as /proc take no files.

    Raises:
      UserError: ``folder`` is in a bucket, a part of the path is not a folder, or nothing can be written in it.
    """
    if _BUCKET.match(os.fspath(folder)):
        raise UserError(f"cannot write to {folder}, a bucket: use a folder on a disk that all hosts share")
    folder = local_path(folder).absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise UserError(f"cannot write to {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: no permission to write in {nearest}")
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: no file can be made in {nearest} ({error.strerror})") from error


class Hold(NamedTuple):
    """An attempt to lock a file.

    Attributes:
      file: the open lock file; closing it releases the lock.
      mine: whether the lock is held now, and not by another process; None if the disk has no locks.
    """

    file: TextIO
    mine: bool | None


def try_lock(path: str | os.PathLike) -> Hold:
    """Tries to lock ``path`` against other processes until the returned file is closed.

    ``path`` is an empty file, which stays. The operating system releases the lock when the process ends, however that
    happens.

    Args:
      path: path of the lock file; a missing folder is created.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        return Hold(file, lock_descriptor(file.fileno(), blocking=False))
    except OSError as error:
        # Some network file systems have no locks; that is not a reason to refuse to write to them.
        logging.warning("%s: cannot be locked (%s); let only one process at a time write there", path, error)
        return Hold(file, None)


def lock(path: str | os.PathLike, taken: str) -> TextIO:
    """Locks ``path`` against other processes until the returned file is closed, as `try_lock`.

    Args:
      path: path of the lock file; a missing folder is created.
      taken: message of the error that is raised when another process holds the lock.

    Returns:
      The open lock file.

    Raises:
      UserError: another process holds the lock, or the file cannot be written.
    """
    hold = try_lock(path)
    if hold.mine is False:
        hold.file.close()
        raise UserError(taken)
    return hold.file


def check_free(path: str | os.PathLike, overwrite: bool) -> None:
    """Checks that nothing at ``path`` is replaced unless the user asks for it.

    Args:
      path: path that will be written.
      overwrite: whether the user allows it to be replaced.

    Raises:
      UserError: ``path`` exists, and ``overwrite`` is false.
    """
    if not overwrite and os.path.lexists(path):
        raise UserError(f"{path} exists already: choose another --out, or replace it with --overwrite")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` as UTF-8, completely or not at all (see `write_atomic`)."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` as indented JSON, completely or not at all (see `write_atomic`)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file, with or without a byte-order mark (see `parse_json` for what is refused).

    Raises:
      UserError: the file is missing, unreadable, too large or not JSON.
    """
    path = Path(path)
    try:
        # A pipe or a device is no file: reading it could wait, or go on, for ever.
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read {path} as JSON: it is not a file")
        if path.stat().st_size > json_text.MAX_BYTES:
            raise UserError(f"cannot read {path} as JSON: it is larger than {size(json_text.MAX_BYTES)}")
        return parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"missing file: {path}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from error


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON file that holds an object, such as a config.

    Raises:
      UserError: as `read_json`, or the file holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
