"""What an error while a checkpoint is read means: the checkpoint is damaged, or something kept it from being read.

A run that resumes goes back behind a damaged checkpoint and renames it, so that only its content may count as damage.
Too many open files, too little memory, a disk that does not answer or a missing permission say nothing about it.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import Any

from spo_jax.core.errors import UserError

# Files that are missing or are something else than was written; every other error of the operating system may pass.
# EUCLEAN, where the file system itself is damaged, is known to Linux alone.
_NAMES = ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EINVAL", "ENAMETOOLONG", "EFBIG", "EBADMSG", "EUCLEAN")
_OF_CONTENT = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}
# tensorstore's errors are ValueErrors that begin with a status, for buckets, or hold the operating system's error.
_STATUS = re.compile(r"(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|ABORTED)\b")
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


class Damaged(Exception):
    """A checkpoint that cannot be read as it was written; the message says what is wrong with it."""


class Unreadable(UserError):
    """A checkpoint that could not be read this time, although it may be whole."""


@contextlib.contextmanager
def telling_damage(where: Any) -> Iterator[None]:
    """Turns whatever orbax and tensorstore raise while they read into one of two errors.

    Args:
      where: the checkpoint, for the message.

    Raises:
      Damaged: the content is damaged.
      Unreadable: it could not be read.
    """
    try:
        yield
    except (UserError, Damaged):
        raise
    except Exception as error:  # orbax and tensorstore report damage with many types of exception
        if _is_of_a_device(error):  # such as too little memory there; the files may be intact
            raise
        reason = next(filter(None, map(_hindrance, _chain(error))), None)
        if reason is None:
            raise Damaged(reason_of(error)) from error
        raise Unreadable(
            f"cannot read {where}: {reason}; nothing was changed: try again when that is mended, or move the "
            "checkpoint away to go on from the one before"
        ) from error


def reason_of(error: BaseException) -> str:
    """Summarises an error of orbax in one line; of tensorstore's long ones, only the operating system's message."""
    number = _os_error(error)
    return os.strerror(number) if number is not None else f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _hindrance(error: BaseException) -> str | None:
    """Returns what kept a checkpoint from being read, or None if the error is about its content."""
    if isinstance(error, MemoryError):
        return "not enough memory on this machine"
    number = _os_error(error)
    if number is not None:
        return None if number in _OF_CONTENT else os.strerror(number)
    status = _STATUS.match(str(error))
    return status[1].lower().replace("_", " ") if status else None


def _os_error(error: BaseException) -> int | None:
    """Returns the operating system's number of an error, if it has one."""
    code = _OS_ERROR.search(str(error))
    return int(code[1]) if code else getattr(error, "errno", None) if isinstance(error, OSError) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_a_device(error: BaseException) -> bool:
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
