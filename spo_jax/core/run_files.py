"""The names of a run's files, which runs write and by which whoever is given a path recognises a run."""

import difflib
import os
from pathlib import Path

BEFORE_AFTER = "before_after.png"
CHECKPOINTS = "checkpoints"
BEST = "best"  # stands for a checkpoint's number: the best by the held-out scores of the run's guard
LORA = "lora.safetensors"
SPM = "spm"  # the folder of a trained preference model
LRM = "lrm"  # the folder of a trained latent reward model
SUMMARY = "summary.json"
START = "run.json"  # how the run was started: its command, settings and number of batches
_NAMED = 5  # runs that a message names


def run_of(path: Path) -> tuple[Path, int | str | None]:
    """Returns the folder of the run, and which of its checkpoints ``path`` names, ``RUN/checkpoints/STEP``.

    The step is a number, or `BEST` in place of one; None if the path names no checkpoint.
    """
    if path.parent.name == CHECKPOINTS and (path.name.isdigit() or path.name == BEST):
        return path.parent.parent, int(path.name) if path.name.isdigit() else BEST
    return path, None


def holds_run(folder: Path) -> bool:
    """Whether a folder seems to hold a checkpoint, by its names alone; `spo_jax.run.folder.open_folder` knows."""
    try:
        return any(name.isdigit() for name in os.listdir(folder / CHECKPOINTS))
    except OSError:  # there is none, or whoever opens it says what is wrong
        return False


def no_such_run(path: Path) -> str:
    """Says that ``--run`` names nothing, and which runs are beside it: the one of a similar name, or a few."""
    runs = sorted(start.parent.name for start in path.parent.glob(f"*/{START}"))
    close = difflib.get_close_matches(path.name, runs, 1)
    if close:
        hint = f"did you mean {path.parent / close[0]}?"
    elif runs:
        hint = f"{path.parent} has {', '.join(runs[:_NAMED])}" + " and others" * (len(runs) > _NAMED)
    else:
        hint = f"there are no runs in {path.parent}"
    return f"--run={path}: no run here (no such file or folder; {hint})"
