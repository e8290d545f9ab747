"""Writes a run's LoRA for other programs: ``python -m spo_jax.export --run=runs/toy --format=kohya --out=FILE``.

The formats ``diffusers`` and ``kohya`` (for web UIs) are LoRA files. The other two hold the whole model, with the LoRA
merged into its weights: ``merged`` is a pipeline folder, and ``single-file`` is one checkpoint for the web UIs.
``--run`` names the folder of a run (to export its last checkpoint), one of its checkpoints, or a LoRA file. LoRA files
are written without reading the base model.
"""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from spo_jax.core.cli import callable_module, run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable
from spo_jax.core.typing import Params
from spo_jax.methods import read_settings
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.models import family_module, open_pipeline
from spo_jax.models.lora import check_fits, read_lora, write_lora
from spo_jax.models.save import check_folder, write_merged
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.folder import CHECKPOINTS, check_format
from spo_jax.weights.lora import LoRA

LORA_FORMATS = ("diffusers", "kohya")
FORMATS = (*LORA_FORMATS, "merged", "single-file")


class _Base(NamedTuple):
    """The names of a base model and its parts, as `spo_jax.models.open_pipeline` takes them; empty for none."""

    model: str
    revision: str
    base: str

    def open(self, **options: Any) -> Any:
        return open_pipeline(self.model, revision=self.revision or None, base=self.base, **options)


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
    """Writes the LoRA of a run or of a file in another format.

    Args:
      source: run folder, checkpoint folder (``RUN/checkpoints/STEP``) or LoRA file.
      form: ``diffusers``, ``kohya``, ``merged`` or ``single-file``.
      out: file that ends in ``.safetensors``, or folder for ``merged``.
      model: base model; empty takes the run's. A LoRA file needs one for ``merged`` and ``single-file``, and also if it
        has kohya's names.
      revision: revision of ``model`` on the hub. The run's revision is used only with the run's model.
      overwrite: whether to replace a file or a pipeline folder at ``out``.
      base: folder or hub id from which a model in one file takes its tokenizers and scheduler. The run's is used only
        with the run's model.
      dtype: dtype of the weights in a ``single-file``, ``float32`` or ``float16``.

    Raises:
      UserError: there is nothing to export at ``source``, or ``out`` exists, is misnamed or cannot be written.
    """
    # Check the arguments.
    source = Path(source)
    out = Path(out)
    _check_out(out, form, overwrite)
    if dtype != "float32" and form != "single-file":
        raise UserError(f"--dtype={dtype}: only --format=single-file has a choice; {form} is written in float32")
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
            check_fits(lora.tree, pipeline.params[pipeline.TRAINED], f"--run={source}", f"--model={given.model}")
    # Write it, alone or merged into the base model.
    if form in LORA_FORMATS:
        write_lora(out, lora, form, module_shapes=shapes)
    else:
        if not base_model.model:
            raise UserError(f"--run={source} is a LoRA file: name its base model with --model")
        _write_model(source, out, form, base_model.open(), lora, dtype, overwrite)
    print(f"wrote {out}")


def _write_model(source: Path, out: Path, form: str, pipeline: Any, lora: LoRA, dtype: str, overwrite: bool) -> None:
    check_fits(lora.tree, pipeline.params[pipeline.TRAINED], f"--run={source}", str(pipeline.folder))
    tree = jax.tree.map(jnp.asarray, lora.tree)
    scale = lora.alpha / lora.rank
    if form == "merged":
        write_merged(out, pipeline, tree, scale, overwrite)
    else:
        family_module(pipeline.FAMILY, "save").write_merged_file(out, pipeline, tree, scale, dtype, overwrite)


def _check_out(out: Path, form: str, overwrite: bool) -> None:
    """Raises a `UserError` if ``out`` cannot be written, before the minutes that reading a model may take."""
    check_writable(out.parent)
    if form == "merged":
        check_folder(out, overwrite)
        return
    if out.suffix != ".safetensors":
        kind = "checkpoint" if form == "single-file" else "LoRA file"
        raise UserError(f"--out={out}: the name of a {kind} has to end in .safetensors, or nothing will read it")
    check_free(out, overwrite)


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
    step = int(folder.name) if folder.name.isdigit() and folder.parent.name == CHECKPOINTS else None
    run = folder.parent.parent if step is not None else folder
    if not (run / CHECKPOINTS).is_dir():
        raise UserError(f"--run={folder}: no run here (expected a folder with checkpoints/, or one of its checkpoints)")
    with Checkpointer(run / CHECKPOINTS, read_only=True) as checkpointer:
        if step is None:
            step = checkpointer.latest_step()
            if step is None:
                raise UserError(f"--run={folder}: there is no checkpoint in it")
        meta = checkpointer.read_meta(step)
        check_format(run / CHECKPOINTS / str(step), meta)
        settings = read_settings(meta["settings"])
        if not isinstance(settings, AdapterSettings):
            raise UserError(f"--run={folder}: a run of method {settings.method!r} trains no LoRA")
        tree = checkpointer.read_item(step, "params")
    if not base.model:
        base = _Base(settings.model, base.revision or settings.revision, base.base or settings.base)
    return settings.lora.adapter(tree), base


# The command


def run() -> None:
    """Runs the command."""
    source = flags.DEFINE_string("run", None, "Export this run folder, checkpoint folder, or LoRA file.")
    form = flags.DEFINE_enum("format", "diffusers", list(FORMATS), "Write this format.")
    out = flags.DEFINE_string("out", None, "Write this file, ending in .safetensors, or this folder for 'merged'.")
    model = flags.DEFINE_string("model", "", "Use this base model (default: the run's).")
    revision = flags.DEFINE_string("revision", "", "Use this revision of the base model's hub id.")
    base = flags.DEFINE_string("base", "", "Take a single file's tokenizers and scheduler from this folder or hub id.")
    dtype = flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Write a 'single-file' in this dtype.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace the file, or the pipeline folder, at --out.")
    flags.mark_flags_as_required(["run", "out"])

    def main(_) -> None:
        lent = {"base": base.value, "dtype": dtype.value}
        export(source.value, form.value, out.value, model.value, revision.value, overwrite.value, **lent)

    run_command(main)


callable_module(__name__, export)

if __name__ == "__main__":
    sys.exit(run())
