"""Curves of a run: JSON lines for programs, TensorBoard events and Weights & Biases for viewing."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_text
from spo_jax.core.json_text import finite_or_null
from spo_jax.core.renamed import renamed_curve
from spo_jax.core.typing import UInt8
from spo_jax.run.tensorboard import Board
from spo_jax.run.wandb_log import WandbLog

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Writes `metrics.jsonl` and `tensorboard/` in one folder.

    A name ``group/series`` is a line ``series`` in the chart ``group``. Only one process may write to a folder. If the
    row of a step is written before its checkpoint is saved, a killed and resumed run has no gaps.

    Args:
      folder: the run's folder; it is created if it is missing.
      resume_step: step whose checkpoint was restored. Rows after it are dropped, because they will be written again.
        None starts new curves and drops existing rows.
      active: whether to write at all; only one of several processes does.
      wandb: run on Weights & Biases that receives the same values; None for none.

    Attributes:
      rows: all rows of the run so far, those of a resumed run included; empty if this process does not write.

    Raises:
      UserError: the folder cannot be written, or the file to continue is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        resume_step: int | None = None,
        active: bool = True,
        wandb: WandbLog | None = None,
    ):
        self.path = Path(folder) / FILE_NAME
        self._file = self._board = None
        self._wandb = wandb if active else None
        self.rows: list[dict[str, int | float | None]] = []
        if not active:
            return
        if resume_step is not None and self.path.exists():
            self.rows = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        write_text(self.path, "".join(_line(row) for row in self.rows))
        self._file = self.path.open("a", encoding="utf-8")
        try:
            self._board = Board(Path(folder) / "tensorboard", 0 if resume_step is None else resume_step + 1)
        except OSError as error:
            raise UserError(f"cannot write curves in {folder}: {error.strerror or error}") from error

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds one row.

        Args:
          step: number of the batch.
          scalars: Python, numpy or JAX scalars by name; NaN and infinity become null in the file.

        Raises:
          UserError: the line cannot be written, for example because the disk is full; nothing more is written then.
        """
        if self._file is None:
            return
        row = {"step": step} | {name: _scalar(value) for name, value in scalars.items()}
        self.rows.append(row)
        with self._writing():
            self._file.write(_line(row))
            self._file.flush()
            self._board.write(step, {name: value for name, value in row.items() if name != "step"})
        if self._wandb is not None:
            self._wandb.write(step, {name: value for name, value in row.items() if name != "step"})

    def extend(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds values to the latest row, for which a run that was stopped had no time.

        Args:
          step: number of the batch; its row is the latest one, or the curves were lost and it becomes a row of its own.
          scalars: as in `write`.

        Raises:
          UserError: as `write`.
        """
        if self._file is None:
            return
        if not self.rows or self.rows[-1]["step"] != step:
            self.write(step, scalars)
            return
        added = {name: _scalar(value) for name, value in scalars.items()}
        self.rows[-1] = self.rows[-1] | added
        self._file.close()
        write_text(self.path, "".join(_line(row) for row in self.rows))  # in one step: a killed run has no gap
        self._file = self.path.open("a", encoding="utf-8")
        with self._writing():
            self._board.write(step, added)
        if self._wandb is not None:
            self._wandb.write(step, added)

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Adds images to TensorBoard and Weights & Biases; the JSONL file holds only scalars.

        Args:
          step: number of the batch.
          images: images by name.

        Raises:
          UserError: as `write`.
        """
        if self._board is not None:
            with self._writing():
                self._board.write_images(step, images)
        if self._wandb is not None:
            self._wandb.write_images(step, images)

    def close(self) -> None:
        """Closes both files, which already hold everything that was written."""
        files = (self._file, self._board)
        self._file = None
        self._board = None
        for file in files:
            # After a full disk, the rest of the buffers fails once more, which has been reported.
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            raise UserError(f"cannot write curves in {self.path.parent}: {error.strerror or error}") from error

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, int | float | None]]:
    """Reads the rows that `MetricsWriter` wrote, in the order of the file.

    A last line that was cut off, as a killed run may leave it, is skipped with a warning. Curves of earlier versions
    have their present names.

    Returns:
      Rows that each have a ``step``; values that were not finite are None.

    Raises:
      UserError: the file is missing, or another line is not a JSON object with an integer ``step``.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: byte {error.start} is not UTF-8") from error
    if lines and not lines[-1].endswith("\n"):
        logging.warning("%s: skipping line %d, which was cut off", path, len(lines))
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error.msg})") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}: line {number} is not an object with an integer 'step'")
        rows.append({renamed_curve(name): value for name, value in row.items()})
    return rows


def _scalar(value: Any) -> int | float:
    return int(value) if isinstance(value, bool | int | np.integer) else float(value)


def _line(row: Mapping[str, int | float | None]) -> str:
    return json.dumps(finite_or_null(row), allow_nan=False) + "\n"
