"""The work of `spo_jax.export`: reads a LoRA and writes it in another format, alone or in its base model."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.core.run_files import CHECKPOINTS, run_of
from spo_jax.core.typing import Params
from spo_jax.methods import read_settings
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.models import family_module, open_pipeline
from spo_jax.models.lora import check_fits, read_lora, write_lora
from spo_jax.models.save import write_merged
from spo_jax.parallel.sharding import to_host
from spo_jax.run.checkpoint_reader import CheckpointReader
from spo_jax.run.folder import check_format
from spo_jax.weights.lora import LORA_FORMATS, LoRA, check_finite


class _Base(NamedTuple):
    """The names of a base model and its parts, as `spo_jax.models.open_pipeline` takes them; empty for none."""

    model: str
    revision: str
    base: str

    def open(self, **options: Any) -> Any:
        return open_pipeline(self.model, revision=self.revision or None, base=self.base, **options)


def export(
    source: Path, form: str, out: Path, model: str, revision: str, overwrite: bool, base: str, dtype: str
) -> None:
    """Writes the LoRA, after `spo_jax.export.export` has checked what it can without jax.

    Args:
      source: as in `spo_jax.export.export`, like all arguments.

    Raises:
      UserError: as `spo_jax.export.export`.
    """
    # Read the LoRA.
    given = _Base(model, revision, base)
    shapes = None
    if source.is_file():
        lora, shapes = _from_file(source, given)
        base_model = given
    else:
        lora, base_model = _from_checkpoint(source, given)
        if given.model and form in LORA_FORMATS:
            pipeline = given.open(abstract=True)
            shapes = pipeline.params[pipeline.TRAINED]
            check_fits(lora.tree, shapes, f"--run={source}", f"--model={given.model}")
    # Write it, alone or merged into the base model.
    if form in LORA_FORMATS:
        write_lora(out, lora, form, module_shapes=shapes)
    else:
        if not base_model.model:
            raise UserError(f"--run={source} is a LoRA file: name its base model with --model")
        with stage(f"reading {base_model.model}"):
            pipeline = base_model.open()
        with stage(f"writing {out}"):
            _write_model(source, out, form, pipeline, lora, dtype, overwrite)


def _write_model(source: Path, out: Path, form: str, pipeline: Any, lora: LoRA, dtype: str, overwrite: bool) -> None:
    check_fits(lora.tree, pipeline.params[pipeline.TRAINED], f"--run={source}", str(pipeline.folder))
    tree = jax.tree.map(jnp.asarray, lora.tree)
    scale = lora.alpha / lora.rank
    if form == "merged":
        write_merged(out, pipeline, tree, scale, overwrite)
    else:
        family_module(pipeline.FAMILY, "save").write_merged_file(out, pipeline, tree, scale, dtype, overwrite)


def _from_file(path: Path, base: _Base) -> tuple[LoRA, Params | None]:
    """Returns the LoRA of a file and the shapes of its base model.

    If no base model is named, the shapes are None, and the LoRA's targets and shapes are not checked.
    """
    if not base.model:
        return read_lora(path), None
    pipeline = base.open(abstract=True)
    shapes = pipeline.params[pipeline.TRAINED]
    return read_lora(path, shapes), shapes


def _from_checkpoint(folder: Path, base: _Base) -> tuple[LoRA, _Base]:
    """Returns the LoRA of a checkpoint, and the base model that is given or, otherwise, the run's."""
    run, step = run_of(folder)
    checkpoints = CheckpointReader(run / CHECKPOINTS)
    if step is None:
        step = checkpoints.latest_step()
        if step is None:
            raise UserError(f"--run={folder}: there is no checkpoint in it")
    meta = checkpoints.read_meta(step)
    check_format(run / CHECKPOINTS / str(step), meta)
    settings = read_settings(meta["settings"])
    if not isinstance(settings, AdapterSettings):
        raise UserError(f"--run={folder}: a run of method {settings.method!r} trains no LoRA")
    tree = checkpoints.read_item(step, "params")
    if not base.model:
        base = _Base(settings.model, base.revision or settings.revision, base.base or settings.base)
    lora = settings.lora.adapter(to_host(tree))
    check_finite(lora, f"--run={folder}")
    return lora, base
