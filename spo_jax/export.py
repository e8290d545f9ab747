"""Writes a LoRA for other programs: ``python -m spo_jax.export --run=runs/toy --out=exports/toy.safetensors``.

The formats ``diffusers`` and ``kohya`` (for web UIs) are LoRA files. The other two hold the whole model, with the LoRA
merged into its weights: ``merged`` is a pipeline folder, and ``single-file`` is one checkpoint for the web UIs.
``--run`` names the folder of a run (to export its last checkpoint), one of its checkpoints, or a LoRA file. LoRA files
are written without reading the base model.

``--card --out=FOLDER`` writes everything that is published of a LoRA: both LoRA files, images, and a page for the hub;
``--push-to=USER/NAME`` uploads it. ``--scales=0.5,0.75,1 --out=FOLDER`` draws the same images at several strengths, so
that one can be picked, and ``--scale=0.75`` folds it into what is exported.
"""

import math
import os
import sys
from pathlib import Path

from absl import flags

from spo_jax.core.cli import callable_module, printing, run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, check_writable, local_path
from spo_jax.core.progress import stage
from spo_jax.core.run_files import CHECKPOINTS, run_of
from spo_jax.models import check_folder, check_model
from spo_jax.weights.kinds import AUTOENCODER, CHECKPOINT, CLIP, NETWORK, describe
from spo_jax.weights.lora import LORA_FORMATS

FORMATS = (*LORA_FORMATS, "merged", "single-file")
DTYPES = ("float32", "float16")
MAX_SCALE = 100.0  # what is beyond it is a slip


def export(
    source: str | os.PathLike,
    form: str,
    out: str | os.PathLike,
    model: str = "",
    revision: str = "",
    overwrite: bool = False,
    base: str = "",
    dtype: str = "float32",
    *,
    scale: float = 1.0,
    author: str = "",
    license: str = "",
) -> None:
    """Writes the LoRA of a run or of a file in another format.

    Args:
      source: run folder, checkpoint folder (``RUN/checkpoints/STEP``) or LoRA file.
      form: ``diffusers``, ``kohya``, ``merged`` or ``single-file``.
      out: file that ends in ``.safetensors``, or folder for ``merged``. Beside a file in kohya's format of a run that
        has images, ``NAME.preview.png`` is written, which web UIs show.
      model: base model; empty takes the run's. A LoRA file needs one for ``merged`` and ``single-file``, and also if it
        has kohya's names.
      revision: revision of ``model`` on the hub. The run's revision is used only with the run's model.
      overwrite: whether to replace a file or a pipeline folder at ``out``.
      base: folder or hub id from which a model in one file takes its tokenizers and scheduler. The run's is used only
        with the run's model.
      dtype: dtype of the weights in a ``single-file``, ``float32`` or ``float16``.
      scale: strength that is folded into what is written, which then has it at strength 1; not 0.
      author: author in the metadata of a file in kohya's format; empty for none.
      license: licence there; empty takes that of the base model if it is known.

    Raises:
      UserError: there is nothing to export at ``source``, or ``out`` exists, is misnamed or cannot be written.
    """
    # Check the arguments.
    for flag, value, known in (("format", form, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise UserError(f"--{flag}={value}: expected {', '.join(known)}")
    for flag, value in (("author", author), ("license", license)):
        if value and form != "kohya":
            raise UserError(f"--{flag}={value}: only --format=kohya and --card have a place for it")
    source = local_path(source)
    out = local_path(out)
    _check_scale(scale)
    _check_out(out, form, overwrite)
    if dtype != "float32" and form != "single-file":
        raise UserError(f"--dtype={dtype}: only --format=single-file has a choice; {form} is written in float32")
    _check_source(source)
    if model:
        check_model(model, base)
    # Imported here because it takes seconds, and the mistakes above are found in one.
    with stage("importing JAX"):
        from spo_jax.work.export.files import export
        from spo_jax.work.export.source import Base

    about = {"scale": scale, "author": author, "license": license}
    written = export(source, form, out, Base(model, revision, base), overwrite=overwrite, dtype=dtype, **about)
    with printing():
        for path in written:
            print(f"wrote {path}")


def _check_source(source: Path) -> None:
    """Raises a `UserError` if there is neither a run nor a LoRA at ``source``, as far as that shows without jax."""
    if source.is_file():
        what = describe(source)
        if what in (CHECKPOINT, CLIP, AUTOENCODER, NETWORK):
            raise UserError(f"--run={source} is {what}: expected a run, one of its checkpoints, or a LoRA file")
        return
    run, _ = run_of(source)
    if not (run / CHECKPOINTS).is_dir():
        what = f", this is {describe(source)}" if source.is_dir() else ""
        expected = "expected a folder with checkpoints/, one of its checkpoints, or a LoRA file"
        raise UserError(f"--run={source}: no run here{what} ({expected})")


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and 0 < abs(scale) <= MAX_SCALE):
        raise UserError(f"--scale={scale:g}: expected a strength other than 0, of at most {MAX_SCALE:g}")


def _check_out(out: Path, form: str, overwrite: bool) -> None:
    """Raises a `UserError` if ``out`` cannot be written, before the minutes that reading a model may take."""
    check_writable(out.parent)
    if form == "merged":
        if out.suffix == ".safetensors":
            raise UserError(f"--out={out}: 'merged' is a folder; --format=single-file writes one file")
        check_folder(out, overwrite)
        return
    if out.suffix != ".safetensors":
        kind = "checkpoint" if form == "single-file" else "LoRA file"
        raise UserError(f"--out={out}: the name of a {kind} has to end in .safetensors, or nothing will read it")
    check_free(out, overwrite)
    if form == "kohya":
        check_free(out.with_name(f"{out.stem}.preview.png"), overwrite)


# The command


def run() -> None:
    """Runs the command."""
    source = flags.DEFINE_string("run", None, "Export this run folder, checkpoint folder, or LoRA file.")
    form = flags.DEFINE_enum("format", "diffusers", list(FORMATS), "Write this format.")
    out = flags.DEFINE_string("out", None, "Write this file, ending in .safetensors, or this folder for 'merged'.")
    model = flags.DEFINE_string("model", "", "Use this base model (default: the run's).")
    revision = flags.DEFINE_string("revision", "", "Use this revision of the base model's hub id.")
    base = flags.DEFINE_string("base", "", "Take a single file's tokenizers and scheduler from this folder or hub id.")
    dtype = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Write a 'single-file' in this dtype.")
    scale = flags.DEFINE_float("scale", 1.0, "Fold this strength into what is written.")
    author = flags.DEFINE_string("author", "", "Name this author in the file's metadata and in the card.")
    license = flags.DEFINE_string("license", "", "Name this licence there (default: that of a known base model).")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace the file, or the pipeline folder, at --out.")
    flags.mark_flags_as_required(["run", "out"])

    def main(_) -> None:
        lent = {"base": base.value, "dtype": dtype.value}
        lent |= {"scale": scale.value, "author": author.value, "license": license.value}
        export(source.value, form.value, out.value, model.value, revision.value, overwrite.value, **lent)

    run_command(main)


callable_module(__name__, export)

if __name__ == "__main__":
    sys.exit(run())
