"""What is exported: the LoRA of a run, of one of its checkpoints or of a file, and what is known about it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.run_files import BEFORE_AFTER, BEST, CHECKPOINTS, SUMMARY, run_of
from spo_jax.core.typing import Params
from spo_jax.methods import read_settings
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.models import open_pipeline
from spo_jax.models.base import Pipeline
from spo_jax.models.lora import check_fits, read_lora
from spo_jax.parallel.sharding import to_host
from spo_jax.run.checkpoint_reader import CheckpointReader
from spo_jax.run.folder import check_format
from spo_jax.run.metrics import FILE_NAME as METRICS
from spo_jax.run.metrics import read_metrics
from spo_jax.run.report.images import ImagePair, read_sheet
from spo_jax.weights.lora import LoRA, check_finite


class Base(NamedTuple):
    """The names of a base model and its parts, as `spo_jax.models.open_pipeline` takes them; empty for none."""

    model: str = ""
    revision: str = ""
    base: str = ""

    def open(self, **options: Any) -> Pipeline:
        """Opens the model with further options of `spo_jax.models.open_pipeline`."""
        return open_pipeline(self.model, revision=self.revision or None, base=self.base, **options)


class RunRecord(NamedTuple):
    """What the folder of a run says about one of its checkpoints.

    Attributes:
      folder: the run's folder.
      step: number of batches before the checkpoint.
      settings: the run's settings.
      summary: content of ``summary.json``; empty unless the run has finished with this checkpoint.
    """

    folder: Path
    step: int
    settings: AdapterSettings
    summary: Mapping[str, Any]

    def pairs(self) -> list[ImagePair]:
        """Reads the first images before and after training; there are none for an earlier checkpoint."""
        return read_sheet(self.folder / BEFORE_AFTER) if self.summary else []

    def updates(self) -> int | None:
        """Counts the optimizer's steps before the checkpoint; None if the curves do not show them."""
        file = self.folder / METRICS
        rows = read_metrics(file) if file.is_file() else []
        trained = [row for row in rows if 0 < row["step"] <= self.step]
        if len(trained) != self.step:
            return None
        batches = sum(row.get("train_batches") or 0 if "train_batches" in row else 1 for row in trained)
        return int(batches) // self.settings.optimizer.gradient_accumulation_steps


class Source(NamedTuple):
    """A LoRA that is exported.

    Attributes:
      place: what the user named: a run, a checkpoint or a file.
      lora: the LoRA, at the strength at which it is exported.
      strength: factor that was multiplied into its scale.
      base: the base model, as far as it is known.
      shapes: shapes of the base model's network, if a base model was named.
      record: what the run says; None for a file.
    """

    place: Path
    lora: LoRA
    strength: float
    base: Base
    shapes: Params | None
    record: RunRecord | None


def read_source(place: Path, given: Base, strength: float | int = 1.0, needs_shapes: bool = True) -> Source:
    """Reads a LoRA.

    Args:
      place: run folder, checkpoint folder or LoRA file.
      given: the base model that the user named, of which only configs are read; a run knows its own.
      strength: factor for the LoRA's scale.
      needs_shapes: whether to compare a run's LoRA with the base model that the user named.

    Raises:
      UserError: there is no LoRA that can be read, or it does not fit the base model that the user named.
    """
    shapes = None
    if place.is_file():
        if given.model:
            shapes = _shapes(given)
        lora, base, record = read_lora(place, shapes), given, None
    else:
        lora, base, record = _from_checkpoint(place, given)
        if given.model and needs_shapes:
            shapes = _shapes(given)
            check_fits(lora.tree, shapes, f"--run={place}", f"--model={given.model}")
    lora = dataclasses.replace(lora, alpha=lora.alpha * strength)
    return Source(place, lora, strength, base, shapes, record)


def _shapes(base: Base) -> Params:
    pipeline = base.open(abstract=True)
    return pipeline.params[pipeline.TRAINED]


def _from_checkpoint(folder: Path, base: Base) -> tuple[LoRA, Base, RunRecord]:
    """Returns the LoRA of a checkpoint, the base model that is given or, otherwise, the run's, and the run's record."""
    run, named = run_of(folder)
    checkpoints = CheckpointReader(run / CHECKPOINTS)
    step = named if isinstance(named, int) else _chosen(checkpoints, folder, best=named == BEST)
    meta = checkpoints.read_meta(step)
    check_format(run / CHECKPOINTS / str(step), meta)
    settings = read_settings(meta["settings"])
    if not isinstance(settings, AdapterSettings):
        raise UserError(f"--run={folder}: a run of method {settings.method!r} trains no LoRA")
    tree = checkpoints.read_item(step, "params")
    if not base.model:
        base = Base(settings.model, base.revision or settings.revision, base.base or settings.base)
    lora = settings.lora.adapter(to_host(tree))
    check_finite(lora, f"--run={folder}")
    return lora, base, RunRecord(run, step, settings, _summary(run, step))


def _chosen(checkpoints: CheckpointReader, folder: Path, best: bool) -> int:
    """Returns the latest checkpoint, or the run's best by its guard if that is asked for or if the guard ended it.

    Raises:
      UserError: there is no checkpoint, or no guard looked at the run.
    """
    latest = checkpoints.latest_step()
    if latest is None:
        raise UserError(f"--run={folder}: there is no checkpoint in it")
    guard = checkpoints.read_meta(latest).get("guard") or {}
    kept, ended = (guard.get("kept") or {}).get("batch"), guard.get("stopped")
    if end := _guarded_end(run_of(folder)[0], latest):
        # The last look may have been taken only when the run was resumed, after this checkpoint had been saved.
        kept, ended = end.get("kept_batch"), end.get("stopped_batch") is not None
    if best and kept is None:
        steps = ", ".join(map(str, sorted(checkpoints.steps())))
        raise UserError(
            f"--run={folder}: no guard says which checkpoint was best (config field eval.guard): name one ({steps})"
        )
    return kept if kept is not None and (best or ended) else latest


def _summary(run: Path, step: int) -> Mapping[str, Any]:
    """Reads the summary of a run, which is about the one checkpoint that was exported at its end."""
    summary = _read_summary(run)
    exported = (summary.get("guard") or {}).get("exported_batch", summary.get("batches"))
    return summary if exported == step else {}


def _guarded_end(run: Path, latest: int) -> Mapping[str, Any]:
    """Reads what the summary says of the guard, if the latest checkpoint is that of the run's end."""
    summary = _read_summary(run)
    return (summary.get("guard") or {}) if summary.get("batches") == latest else {}


def _read_summary(run: Path) -> Mapping[str, Any]:
    file = run / SUMMARY
    return read_json_object(file) if file.is_file() else {}
