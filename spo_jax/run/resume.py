"""What to do with a run that exists already."""

import dataclasses
from pathlib import Path

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable
from spo_jax.core.run_files import CHECKPOINTS
from spo_jax.run.lock import user_of


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
            if user := user_of(out):
                raise UserError(
                    f"--resume: {out} is in use by {user}, which has saved no checkpoint yet: wait for it, stop it, or "
                    "choose another --out"
                )
            raise UserError(f"--resume: no checkpoint in {folder}; remove --resume to start a run there")
        if holds_run and not (self.required or self.if_there):
            raise UserError(
                f"{out} already holds a run: pass --resume to continue it (in Python Resume(required=True)), or choose "
                "another --out"
            )
        check_writable(out)
