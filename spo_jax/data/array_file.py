"""An array on disk that is computed once, row by row; the computation can be stopped and resumed at any row.

``NAME.npy`` is always the whole array; until it is complete, the rows are in ``NAME.npy.part``. The card, ``NAME.json``
beside them, records what the rows were computed from, so that rows of other data or of another network are never
mistaken for these. ``NAME.npy.lock`` keeps a second process from writing at the same time.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, lock, read_json_object, write_json
from spo_jax.core.trees import flatten
from spo_jax.core.typing import Num
from spo_jax.core.words import size

_SHOWN = 16  # characters of a value in a message, enough to distinguish digests


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """Describes one array on disk.

    Attributes:
      path: path of the array, ending in ``.npy``.
      shape: shape of the whole array.
      dtype: type of the values; ``bfloat16`` is stored as its 16 bits, because .npy files do not know the type.
      bound: what determines the rows, as JSON with readable names that may be nested.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    bound: Mapping[str, Any]

    @property
    def part(self) -> Path:
        """The file that gathers the rows until the array is complete."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def card(self) -> Path:
        """The JSON file beside the array, which records what the rows were computed from."""
        return self.path.with_suffix(".json")

    @property
    def stored_dtype(self) -> np.dtype:
        """The type of the values in the file."""
        return np.dtype(np.uint16) if self.dtype == ml_dtypes.bfloat16 else self.dtype

    @property
    def row_bytes(self) -> int:
        """The size of one row in bytes."""
        return math.prod(self.shape[1:]) * self.stored_dtype.itemsize

    @property
    def header(self) -> bytes:
        """The first bytes of the .npy file, up to the first row."""
        stream = io.BytesIO()
        kind = np.lib.format.dtype_to_descr(self.stored_dtype)
        header = {"descr": kind, "fortran_order": False, "shape": tuple(self.shape)}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()

    def describe(self) -> dict[str, Any]:
        """Returns the content of the card, except for the number of finished rows."""
        kind = {"shape": list(self.shape), "dtype": str(self.dtype)}
        return json.loads(json.dumps({**kind, "bound": dict(self.bound)}))

    def rows_done(self) -> int:
        """Counts the finished rows, from the first one on.

        Raises:
          UserError: the existing rows were computed from something else (the message names the difference), or they
            are damaged.
        """
        if not self.path.exists() and not self.part.exists():
            return 0
        if not self.card.is_file():
            raise UserError(
                f"missing file: {self.card}, which records what {self.path} was computed from; delete the rows to "
                "compute them again"
            )
        card = read_json_object(self.card)
        self._check(card)
        if self.path.exists():
            return len(self.open())
        # A row counts if it is both on the card and in the file: the file may have been cut off, and rows that are not
        # on the card may be half written.
        stored = max(0, self.part.stat().st_size - len(self.header)) // self.row_bytes
        return min(int(card.get("rows_done", 0)), stored)

    def _check(self, card: Mapping[str, Any]) -> None:
        """Raises a `UserError` that names the first difference between this array and the card on disk."""
        ours = _facts(self.describe())
        theirs = _facts(card)
        for name in sorted({*ours, *theirs}):
            if ours.get(name) == theirs.get(name):
                continue
            there, here = (str(facts.get(name, "nothing"))[:_SHOWN] for facts in (theirs, ours))
            raise UserError(
                f"{self.path} was computed from something else: {name} is {there} there and {here} here; choose "
                "another folder, or delete this one to compute it again"
            )

    def open(self) -> Num[np.ndarray, "..."]:
        """Opens the whole array as a memory map, so that only the parts in use are read from disk.

        Raises:
          UserError: the array is missing, was computed from something else, or is damaged.
        """
        if not self.path.is_file():
            raise UserError(f"missing file: {self.path}: the array is not complete yet")
        self._check(read_json_object(self.card))
        try:
            array = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.path} ({error}); delete it to compute it again") from error
        if (array.shape, array.dtype) != (self.shape, self.stored_dtype):
            raise UserError(
                f"{self.path} is damaged: it holds {array.dtype}{list(array.shape)}: expected "
                f"{self.stored_dtype}{list(self.shape)}; delete it to compute it again"
            )
        return array.view(self.dtype)

    def first(self, count: int) -> Num[np.ndarray, "n ..."]:
        """Reads the first ``count`` rows, which have to be finished, of an array that need not be complete."""
        path = self.path if self.path.exists() else self.part
        if not count:
            return np.empty((0, *self.shape[1:]), self.dtype)
        with open(path, "rb") as stream:
            stream.seek(len(self.header))
            content = stream.read(count * self.row_bytes)
        return np.frombuffer(content, self.stored_dtype).reshape(count, *self.shape[1:]).view(self.dtype)


class Writer:
    """A context manager that appends rows to an incomplete `ArrayFile`, from row `done` on, as its only writer.

    Leaving the context keeps the appended rows, on errors and interrupts too. It gives the file its final name once all
    rows are present, even if they were present before. If another process has completed the array in the meantime,
    nothing is left to do.
    """

    def __init__(self, file: ArrayFile, flush_every: int = 64):
        """Locks the array and opens it for writing.

        Args:
          file: the array to write.
          flush_every: number of appends after which the rows are synced to disk; a crash loses no synced row.

        Raises:
          UserError: another process is writing the array; the folder cannot be written or does not have enough space
            for the remaining rows; or `ArrayFile.rows_done` raises.
        """
        self.file = file
        self.done = 0
        self._flush_every = flush_every
        self._appends = 0
        self._broken = False
        check_writable(file.path.parent)
        taken = f"{file.path} is being written by another process; wait for it, or choose another folder"
        with contextlib.ExitStack() as held:
            held.enter_context(lock(file.path.with_name(file.path.name + ".lock"), taken))
            self.done = file.rows_done()  # not before the lock, because its previous holder may have added rows
            try:
                self._stream = None if file.path.exists() else held.enter_context(self._opened())
            except OSError as error:
                raise self._refused(error) from error
            self._held = held.pop_all()

    def _opened(self) -> BinaryIO:
        """Opens the file of rows, positioned after the last finished row."""
        # Refuse before the work starts if the remaining rows do not fit.
        header = self.file.header
        folder = self.file.path.parent
        needed = (self.file.shape[0] - self.done) * self.file.row_bytes
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"{folder}: not enough space: {self.file.path.name} needs {size(needed)}, but only "
                f"{size(free)} are free"
            )

        if not self.done:
            self._write_card()  # comes first, because nobody could say what rows without a card belong to
        # Plain writes instead of a memory map, with which a full disk kills the process instead of raising an error.
        stream = open(self.file.part, "r+b" if self.done else "wb")
        if not self.done:
            stream.write(header)
            stream.flush()

        # Rows beyond those on the card may be half written.
        stream.truncate(len(header) + self.done * self.file.row_bytes)
        stream.seek(0, os.SEEK_END)
        return stream

    def append(self, rows: Num[np.ndarray, "n ..."]) -> None:
        """Writes the next rows.

        Raises:
          UserError: the disk refuses the rows; earlier rows are kept.
        """
        if rows.shape[1:] != self.file.shape[1:] or rows.dtype != self.file.dtype:
            raise ValueError(f"rows {rows.dtype}{rows.shape} do not fit a file of {self.file.dtype}{self.file.shape}")
        try:
            self._stream.write(np.ascontiguousarray(rows).view(self.file.stored_dtype).data)
            self._appends += 1
            self.done += len(rows)
            if self._appends % self._flush_every == 0:
                self._flush()
        except OSError as error:
            raise self._refused(error) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._held:
                if self._stream is None:
                    return
                if not self._broken:
                    self._flush()
                if error is None and self.done == self.file.shape[0]:
                    os.replace(self.file.part, self.file.path)
        except OSError as refusal:
            raise self._refused(refusal) from refusal

    def _flush(self) -> None:
        """Syncs the rows to disk, and only then counts them on the card."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._write_card()

    def _write_card(self) -> None:
        write_json(self.file.card, {**self.file.describe(), "rows_done": self.done})

    def _refused(self, error: OSError) -> UserError:
        """Makes the error for a disk that refuses a write; after it, nothing more is written."""
        self._broken = True
        return UserError(
            f"cannot write {self.file.part}: {error.strerror or error}; {self.done} of {self.file.shape[0]} rows are "
            "done, and the same command resumes from the last row that is safe on disk"
        )


def _facts(card: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a card that have to agree, as a flat dict."""
    kind = {name: card.get(name) for name in ("shape", "dtype")}
    return {**kind, **flatten(card.get("bound", {}), ".")}
