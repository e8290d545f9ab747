"""From a run, a checkpoint or a LoRA file to what other programs read."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.checkpoint import Checkpointer
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable
from spo_jax.core.settings import from_config
from spo_jax.models.lora import init_lora
from spo_jax.pipeline.build import Pipeline, load_pipeline
from spo_jax.pipeline.export import write_merged
from spo_jax.spo.settings import TrainSettings
from spo_jax.spo.train import init_state, make_optimiser
from spo_jax.weights.lora import LoRA, read_lora, write_lora


def export(source: str | os.PathLike, form: str, out: str | os.PathLike, model: str = "") -> None:
    """Writes ``source``'s adapter in ``form``.

    Args:
      source: run folder, checkpoint folder (``RUN/checkpoints/STEP``) or LoRA file.
      form: ``diffusers``, ``kohya`` or ``merged``.
      out: file, or folder for ``merged``.
      model: base model; needed for a LoRA file, else the run's.

    Raises:
      UserError: nothing to export at ``source``, or ``out`` is taken or cannot be written.
    """
    source = Path(source)
    check_writable(Path(out).parent)
    if source.is_file():
        lora, pipeline = _from_file(source, form, model)
    else:
        lora, pipeline = _from_checkpoint(source, form, model)
    if form == "merged":
        write_merged(Path(out), pipeline, jax.tree.map(jnp.asarray, lora.tree), lora.alpha / lora.rank)
    else:
        write_lora(out, lora, form)
    print(f"wrote {out}")


def _from_file(path: Path, form: str, model: str) -> tuple[LoRA, Pipeline | None]:
    if not model:
        raise UserError(f"--run={path} is a LoRA file: name its base model with --model")
    pipeline = load_pipeline(model)
    return read_lora(path, pipeline.params["unet"]), pipeline


def _from_checkpoint(folder: Path, form: str, model: str) -> tuple[LoRA, Pipeline | None]:
    """The adapter of a checkpoint; the state's tree is remade from the settings stored in it."""
    step = int(folder.name) if folder.name.isdigit() and folder.parent.name == "checkpoints" else None
    run = folder.parent.parent if step is not None else folder
    if not (run / "checkpoints").is_dir():
        raise UserError(f"--run={folder}: no run here (expected a folder with checkpoints/, or one of its checkpoints)")
    checkpointer = Checkpointer(run / "checkpoints", read_only=True)
    if step is None:
        step = checkpointer.latest_step()
        if step is None:
            raise UserError(f"--run={folder}: there is no checkpoint in it")
    settings = from_config(TrainSettings, checkpointer.read_meta(step)["settings"])
    pipeline = load_pipeline(model or settings.model, revision=settings.revision or None)
    fresh = init_lora(jax.random.key(0), pipeline.params["unet"], settings.lora.rank)
    state, _ = checkpointer.restore(step, init_state(fresh, make_optimiser(settings.spo)))
    checkpointer.close()
    rank = settings.lora.rank
    return LoRA(jax.tree.map(np.asarray, state.lora), settings.lora.scale * rank, rank), pipeline
