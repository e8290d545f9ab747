"""The lock on a run's folder: one run at a time writes there, and a lock that a dead run has left is told apart.

It has two parts. The operating system's lock on an empty file ends with the process, however that ends, and is certain
between the processes of one running system; other hosts that share the folder may not see it. A card beside it names
the holder, and its modification time is renewed as long as the holder lives. A run that finds a card decides like this:

- Card of this system: the operating system's lock says whether the holder lives.
- Card of another system, or a disk without locks: the holder is dead if the card's time has not been renewed for
  `STALE` seconds. Ages are measured by the clock of the disk, because the clocks of two hosts may differ.

A holder that was suspended for so long finds the card of another run, and writes nothing more.
"""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.files import try_lock

LOCK = ".lock"  # the empty file that the operating system locks
CARD = "lock.json"
BEAT = 15.0  # seconds between two renewals
STALE = 150.0  # seconds; network file systems show a renewal to other hosts up to 60 s later


class RunLock:
    """A context manager that holds the lock on a run's folder; a folder in which nothing was written is removed.

    Args:
      folder: the run's folder; it is created if it is missing.
      beat: seconds between two renewals of the card.
      stale: seconds without a renewal after which the lock of another system counts as left by a dead run.

    Attributes:
      id: text that no other lock has; see `holds_lock`.

    Raises:
      UserError: another run holds the lock, or the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, beat: float = BEAT, stale: float = STALE):
        self.folder = Path(folder)
        self._path = self.folder / CARD
        self._beat = beat
        self._stale = stale
        self._card = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "system": _system(),
            "id": uuid.uuid4().hex,
        }
        self.id = self._card["id"]
        self._ended = threading.Event()

    def __enter__(self) -> "RunLock":
        while not self._take():
            pass
        self._renewer = threading.Thread(target=self._renew, name="run lock", daemon=True)
        self._renewer.start()
        return self

    def _take(self) -> bool:
        """Takes the lock; returns False if its file was removed meanwhile, whereupon another attempt is due."""
        made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        with contextlib.ExitStack() as held:
            held.callback(_remove_empty, made)
            hold = try_lock(self.folder / LOCK)
            held.enter_context(hold.file)
            # Its holder removes the file at the end; the lock on a removed file excludes nobody.
            mine = hold.mine and _is_still(self.folder / LOCK, hold.file)
            self._refuse_if_in_use(mine)
            if not _is_still(self.folder / LOCK, hold.file):
                return False
            held.callback(self._remove_files)
            self._write_card()
            self._held = held.pop_all()
        return True

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._renewer.join()
        self._held.close()

    def _remove_files(self) -> None:
        if _read(self._path) in (None, self._card):  # otherwise both belong to another run by now
            with contextlib.suppress(OSError):  # Windows keeps files that are open
                self._path.unlink(missing_ok=True)
                (self.folder / LOCK).unlink(missing_ok=True)

    def check(self) -> None:
        """Raises a `UserError` if another run has taken over the folder; it is called before anything is saved."""
        card = _read(self._path)
        if card and card != self._card:
            raise UserError(
                f"{self.folder} was taken over by {_holder(card)}, because this run had given no sign of life for "
                f"{self._stale:.0f} s; this run ends and writes nothing more"
            )

    # Taking the lock

    def _refuse_if_in_use(self, mine: bool | None) -> None:
        """Raises a `UserError` if the holder lives; ``mine`` is whether the operating system's lock was free."""
        card = _read(self._path)
        if card is None:
            if mine is False:
                raise UserError(f"{self.folder} is in use by another process, which is just starting or ending")
            return
        here = card.get("system") == self._card["system"]
        if here and mine is False:
            raise UserError(
                f"{self.folder} is in use by {_holder(card)}: wait for it, stop it, or choose another --out"
            )
        # Without a lock of the operating system, or on another host, only signs of life tell.
        if not (here and mine) and self._lives(card):
            raise UserError(
                f"{self.folder} is in use by {_holder(card)}, which still gives signs of life: wait for it, stop it, "
                f"or choose another --out. If that process is certainly gone, delete {self._path}"
            )
        logging.warning("%s: taking over from %s, which has ended without notice", self.folder, _holder(card))

    def _lives(self, card: dict[str, Any]) -> bool:
        """Whether the holder renews the card; waits for a renewal if the last one is not old enough to tell."""
        seen = _time_of(self._path)
        if seen is None:
            return False
        age = self._disk_time() - seen
        wait = min(self._stale, self._stale - age)
        if wait > 0:
            logging.warning(
                "%s is locked by %s; its last sign of life is %.0f s old. Waiting up to %.0f s for another one",
                *(self.folder, _holder(card), max(age, 0), wait),
            )
        end = time.monotonic() + wait
        while time.monotonic() < end:
            time.sleep(min(1.0, self._beat))
            now = _time_of(self._path)
            if now != seen:
                return now is not None
        return False

    def _disk_time(self) -> float:
        """Returns the time by the clock that stamps files in the folder."""
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix=LOCK) as probe:
                return os.fstat(probe.fileno()).st_mtime
        except OSError as error:
            raise UserError(f"cannot write in {self.folder}: {error.strerror or error}") from error

    def _write_card(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
            with open(self._path, "x", encoding="utf-8") as file:  # fails if another run is faster
                json.dump(self._card, file, indent=2)
        except FileExistsError as error:
            raise UserError(f"{self.folder} is in use by another process, which is just starting") from error
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error

    # Holding it

    def _renew(self) -> None:
        while not self._ended.wait(self._beat):
            with contextlib.suppress(OSError, UserError):  # a network file system may be away for a while
                card = _read(self._path)
                if card is None:  # somebody has deleted it, although this run lives
                    self._write_card()
                elif card == self._card:
                    os.utime(self._path)


def user_of(folder: str | os.PathLike) -> str:
    """Returns in words which run is writing in a folder now; empty if none is. Nothing is waited for or changed."""
    path = Path(folder) / CARD
    card = _read(path)
    if card is None or not (Path(folder) / LOCK).exists():
        return ""
    free = None
    if card.get("system") == _system():
        with contextlib.suppress(OSError, UserError):
            hold = try_lock(Path(folder) / LOCK)
            hold.file.close()
            free = hold.mine
    seen = _time_of(path)
    lives = seen is not None and time.time() - seen < STALE if free is None else not free
    return _holder(card) if lives else ""


def holds_lock(folder: str | os.PathLike, lock_id: str) -> bool:
    """Whether the folder, as this process sees it, holds the card of that lock."""
    return (_read(Path(folder) / CARD) or {}).get("id") == lock_id


def _system() -> str:
    """Identifies the running system, within which locks of the operating system are certain.

    It is not the name of the host: containers share a system, and a pod may come back under its name on another one.
    """
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _is_still(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes the folders, the deepest first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the card, None if there is none, or an empty one if it cannot be read, as while it is being written."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _time_of(path: Path) -> float | None:
    try:
        with open(path, "rb") as file:  # network file systems ask the server when a file is opened
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _holder(card: dict[str, Any]) -> str:
    if not card:
        return "a process that has not said who it is"
    return f"process {card.get('pid')} on host {card.get('host')} since {card.get('since')}"
