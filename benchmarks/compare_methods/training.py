"""A run of the comparison: trains in this process, and continues where a killed one stopped."""

import contextlib
import dataclasses
import gc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.compare_methods.plan import Length
from benchmarks.compare_methods.stages import digest
from spo_jax.core.errors import UserError
from spo_jax.core.run_files import CHECKPOINTS, SUMMARY
from spo_jax.core.typing import Params
from spo_jax.run.checkpoint_reader import CheckpointReader
from spo_jax.run.metrics import FILE_NAME as METRICS
from spo_jax.run.metrics import read_metrics
from spo_jax.run.resume import Resume
from spo_jax.run.settings import RunSettings
from spo_jax.train import train

_MOST_MEMORY = 4 * 2**30  # bytes of this process above which compiled programs are dropped


class Trained(NamedTuple):
    """A run that has ended.

    Attributes:
      folder: its folder.
      steps: numbers of batches after which there is a checkpoint, in order.
      rows: its curves.
      ended: why it ended before its last batch; empty if it did not.
    """

    folder: Path
    steps: Sequence[int]
    rows: Sequence[Mapping[str, Any]]
    ended: str = ""


def identity(settings: RunSettings, facts: Mapping[str, str]) -> dict[str, Any]:
    """Returns JSON values on which the weights of a run depend: its settings, and digests of what it reads."""
    fields = dataclasses.asdict(settings)
    for free in ("log", "mesh", "eval", "remat_keeps"):
        fields.pop(free, None)
    return {"settings": fields, **facts}


def log_fields(length: Length) -> dict[str, int]:
    """Returns how often a run saves, and that it keeps every checkpoint."""
    return {"log.checkpoint_every": length.every, "log.keep_checkpoints": length.batches // length.every}


def trained(folder: Path, name: str, settings: RunSettings, facts: Mapping[str, str]) -> Trained:
    """Trains, or finds what was trained before.

    Args:
      folder: folder of all runs.
      name: name of this one.
      settings: its settings.
      facts: as in `identity`.

    Raises:
      UserError: the run failed before its first checkpoint.
      Preempted: the process received SIGTERM, and the run has been saved.
    """
    run = folder / f"{name}-{digest(identity(settings, facts))}"
    ended = ""
    if not (run / SUMMARY).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            print(f"\n== {run.name}", flush=True)
            try:
                train(settings, run, Resume(if_there=True))
            except UserError as error:
                ended = str(error)
        free_memory()
    steps = sorted(CheckpointReader(run / CHECKPOINTS).steps())
    if not steps:
        raise UserError(ended or f"{run}: there is no checkpoint")
    return Trained(run, steps, read_metrics(run / METRICS), ended)


def free_memory() -> None:
    """Frees what earlier runs have left in this process: a hundred of them compile their own programs.

    Programs that are still needed, such as the sampler's, are then compiled again, from the cache on the disk.
    """
    gc.collect()
    if _resident() > _MOST_MEMORY:
        jax.clear_caches()
        gc.collect()


def _resident() -> int:
    """Returns the bytes of memory that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def adapter_of(run: Trained, step: int) -> Params:
    """Reads the adapter after ``step`` batches."""
    return CheckpointReader(run.folder / CHECKPOINTS).read_item(step, "params")
