"""From a run, a checkpoint or a LoRA file to what other programs read."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp

from spo_jax.core.config import from_config
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable
from spo_jax.methods.spo.settings import TrainSettings
from spo_jax.methods.spo.update import init_state, make_optimiser
from spo_jax.models.stable_diffusion.pipeline import Pipeline, load_pipeline
from spo_jax.models.stable_diffusion.save import check_folder, write_merged, write_merged_file
from spo_jax.nn.lora import init_lora
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.weights.lora import LoRA, read_lora, write_lora


def export(
    source: str | os.PathLike,
    form: str,
    out: str | os.PathLike,
    model: str = "",
    revision: str = "",
    overwrite: bool = False,
    base: str = "",
    dtype: str = "float32",
) -> None:
    """Writes ``source``'s adapter in ``form``.

    Args:
      source: run folder, checkpoint folder (``RUN/checkpoints/STEP``) or LoRA file.
      form: ``diffusers``, ``kohya``, ``merged`` or ``single-file``.
      out: file that ends in ``.safetensors``, or folder for ``merged``.
      model: base model; needed for a LoRA file, else the run's.
      revision: of ``model`` on the hub. The run's own goes with the run's model only.
      overwrite: replace what is at ``out``: a file, or a pipeline's folder.
      base: lends a model in one file its tokenizers and scheduler. The run's own goes with the run's model only.
      dtype: of a ``single-file``'s numbers, ``float32`` or ``float16``.

    Raises:
      UserError: nothing to export at ``source``, or ``out`` is taken, is misnamed or cannot be written.
    """
    source, out = Path(source), Path(out)
    _check_out(out, form, overwrite)
    if dtype != "float32" and form != "single-file":
        raise UserError(f"--dtype={dtype}: only --format=single-file has a choice; {form} is written in float32")
    if source.is_file():
        lora, pipeline = _from_file(source, model, revision, base)
    else:
        lora, pipeline = _from_checkpoint(source, model, revision, base)
    tree, scale = jax.tree.map(jnp.asarray, lora.tree), lora.alpha / lora.rank
    if form == "merged":
        write_merged(out, pipeline, tree, scale, overwrite)
    elif form == "single-file":
        write_merged_file(out, pipeline, tree, scale, dtype, overwrite)
    else:
        write_lora(out, lora, form, module_shapes=pipeline.params["unet"])
    print(f"wrote {out}")


def _check_out(out: Path, form: str, overwrite: bool) -> None:
    """Before the minutes that reading a model may take."""
    check_writable(out.parent)
    if form == "merged":
        check_folder(out, overwrite)
        return
    if out.suffix != ".safetensors":
        raise UserError(
            f"--out={out}: the name of a {'checkpoint' if form == 'single-file' else 'LoRA file'} has to end in "
            ".safetensors, or nothing will read it"
        )
    check_free(out, overwrite)


def _from_file(path: Path, model: str, revision: str, base: str) -> tuple[LoRA, Pipeline]:
    if not model:
        raise UserError(f"--run={path} is a LoRA file: name its base model with --model")
    pipeline = load_pipeline(model, revision=revision or None, base=base)
    return read_lora(path, pipeline.params["unet"]), pipeline


def _from_checkpoint(folder: Path, model: str, revision: str, base: str) -> tuple[LoRA, Pipeline]:
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
    if not model:
        model, revision, base = settings.model, revision or settings.revision, base or settings.base
    pipeline = load_pipeline(model, revision=revision or None, base=base)
    fresh = init_lora(jax.random.key(0), pipeline.params["unet"], settings.lora.rank)
    state, _ = checkpointer.restore(step, init_state(fresh, make_optimiser(settings.spo)))
    checkpointer.close()
    return settings.lora.adapter(state.lora), pipeline
