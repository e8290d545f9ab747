"""The names of a run's files, which runs write and by which whoever is given a path recognises a run."""

import os
from pathlib import Path

BEFORE_AFTER = "before_after.png"
CHECKPOINTS = "checkpoints"
LORA = "lora.safetensors"
SPM = "spm"  # the folder of a trained preference model
SUMMARY = "summary.json"
START = "run.json"  # how the run was started: its command, settings and number of batches


def run_of(path: Path) -> tuple[Path, int | None]:
    """Returns the folder of the run, and the step if ``path`` is one of its checkpoints, ``RUN/checkpoints/STEP``."""
    if path.name.isdigit() and path.parent.name == CHECKPOINTS:
        return path.parent.parent, int(path.name)
    return path, None


def holds_run(folder: Path) -> bool:
    """Whether a folder seems to hold a checkpoint, by its names alone; `spo_jax.run.folder.open_folder` knows."""
    try:
        return any(name.isdigit() for name in os.listdir(folder / CHECKPOINTS))
    except OSError:  # there is none, or whoever opens it says what is wrong
        return False
