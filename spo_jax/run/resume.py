"""What to do with a run that exists already."""

import dataclasses
import os
from pathlib import Path

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable

CHECKPOINTS = "checkpoints"  # of a run, in its folder


@dataclasses.dataclass(frozen=True)
class Resume:
    """What to do with a run that exists already.

    Attributes:
      required: resume it; it is an error if there is none.
      if_there: resume it if there is one, otherwise start a run.
      changed: resume even if settings or data have changed; used with one of the others.
    """

    required: bool = False
    if_there: bool = False
    changed: bool = False

    def check(self, out: Path, holds_run: bool) -> None:
        """Refuses a folder in which the run cannot start or continue.

        Args:
          out: the folder.
          holds_run: whether there is a checkpoint in it.

        Raises:
          UserError: the folder holds another run, or no run to resume, or it cannot be written.
        """
        if self.required and not holds_run:
            folder = out / CHECKPOINTS
            raise UserError(f"--resume: no checkpoint in {folder}; remove --resume to start a run there")
        if holds_run and not (self.required or self.if_there):
            raise UserError(
                f"{out} already holds a run: pass --resume to continue it (in Python Resume(required=True)), or choose "
                "another --out"
            )
        check_writable(out)


def holds_run(out: Path) -> bool:
    """Whether a folder seems to hold a checkpoint, by its names alone; `spo_jax.run.folder.open_folder` knows."""
    try:
        return any(name.isdigit() for name in os.listdir(out / CHECKPOINTS))
    except OSError:  # there is none, or whoever opens it says what is wrong
        return False
