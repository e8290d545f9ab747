"""Writes a LoRA in another format, alone or in its base model."""

from pathlib import Path

import jax
import jax.numpy as jnp

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.models import family_module
from spo_jax.models.base import Pipeline
from spo_jax.models.lora import check_fits, write_lora
from spo_jax.models.save import write_merged
from spo_jax.weights.lora import LORA_FORMATS
from spo_jax.work.export.metadata import kohya_metadata
from spo_jax.work.export.preview import preview_file, write_preview
from spo_jax.work.export.source import Base, Source, read_source


def export(
    place: Path,
    form: str,
    out: Path,
    given: Base,
    *,
    overwrite: bool = False,
    dtype: str = "float32",
    scale: float | int = 1.0,
    author: str = "",
    license: str = "",
) -> list[Path]:
    """Writes the LoRA, after `spo_jax.export.export` has checked what it can without jax.

    Args:
      place: run folder, checkpoint folder or LoRA file; the other arguments are those of `spo_jax.export.export`.
      given: the base model that the user named.

    Returns:
      The files, or the folder, that were written.

    Raises:
      UserError: as `spo_jax.export.export`.
    """
    source = read_source(place, given, scale, needs_shapes=form in LORA_FORMATS)
    if form == "kohya":
        return write_kohya(source, out, author, license)
    if form in LORA_FORMATS:
        write_lora(out, source.lora, form)
    else:
        if not source.base.model:
            raise UserError(f"--run={place} is a LoRA file: name its base model with --model")
        with stage(f"reading {source.base.model}"):
            pipeline = source.base.open()
        with stage(f"writing {out}"):
            _write_model(source, out, form, pipeline, dtype, overwrite)
    return [out]


def write_kohya(source: Source, out: Path, author: str = "", license: str = "") -> list[Path]:
    """Writes a LoRA file for the web UIs, with what they show of it, and the image that they show beside it.

    Args:
      source: the LoRA.
      out: the file; the image is ``NAME.preview.png`` beside it, for a run that has images.
      author: its author, if the user named one.
      license: its licence, if the user named one.

    Returns:
      The files that were written.
    """
    pairs = source.record.pairs() if source.record else []
    metadata = kohya_metadata(source, out.stem, pairs, author, license)
    write_lora(out, source.lora, "kohya", metadata, source.shapes)
    if not pairs:
        return [out]
    write_preview(preview_file(out), pairs)
    return [out, preview_file(out)]


def _write_model(source: Source, out: Path, form: str, pipeline: Pipeline, dtype: str, overwrite: bool) -> None:
    lora = source.lora
    check_fits(lora.tree, pipeline.params[pipeline.TRAINED], f"--run={source.place}", str(pipeline.folder))
    tree = jax.tree.map(jnp.asarray, lora.tree)
    scale = lora.alpha / lora.rank
    if form == "merged":
        write_merged(out, pipeline, tree, scale, overwrite)
    else:
        family_module(pipeline.FAMILY, "save").write_merged_file(out, pipeline, tree, scale, dtype, overwrite)
