"""Curves of a run: one JSON object a line for programs, TensorBoard events for people."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tensorboardX import SummaryWriter

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_text
from spo_jax.core.typing import UInt8

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Writes `metrics.jsonl` and `tensorboard/` in one folder.

    A name ``group/series`` is a line ``series`` in the chart ``group``. Only one process may write to a folder.
    Write the row of a step before saving the checkpoint of that step, then a killed and resumed run has no gaps.

    Args:
      folder: made when missing.
      resume_step: the step whose checkpoint was restored: rows after it are dropped, since they will be written
        again. None starts new curves; rows that are there are dropped.
      active: whether to write at all; of several processes one does.

    Raises:
      UserError: the folder cannot be written, or the file to go on with is damaged.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int | None = None, active: bool = True):
        self.path = Path(folder) / FILE_NAME
        self._file = self._board = None
        if not active:
            return
        rows = []
        if resume_step is not None and self.path.exists():
            rows = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        write_text(self.path, "".join(_line(row) for row in rows))
        self._file = self.path.open("a", encoding="utf-8")
        # purge_step makes TensorBoard hide what the run before wrote for this and later steps.
        purge = 0 if resume_step is None else resume_step + 1
        self._board = SummaryWriter(
            str(Path(folder) / "tensorboard"),
            purge_step=purge,
            flush_secs=10,
            filename_suffix=f".{purge}",  # names hold seconds only: a quick resume must not overwrite
        )

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds one row: ``scalars`` are Python, numpy or JAX scalars; NaN and infinity become null in the file.

        Raises:
          UserError: the disk refuses the line.
        """
        if self._file is None:
            return
        row = {"step": step} | {name: _scalar(value) for name, value in scalars.items()}
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Adds pictures to TensorBoard; the JSONL file holds scalars only."""
        if self._board is not None:
            for name, image in images.items():
                self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, int | float | None]]:
    """Reads what `MetricsWriter` wrote: rows in file order, each with ``step``; None where the value was not finite.

    A last line that was cut off, as a killed run may leave it, is skipped with a warning.

    Raises:
      UserError: the file is missing or another line is not a JSON object with an integer ``step``.
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
        rows.append(row)
    return rows


def _scalar(value: Any) -> int | float:
    return int(value) if isinstance(value, bool | int | np.integer) else float(value)


def _line(row: Mapping[str, int | float | None]) -> str:
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
