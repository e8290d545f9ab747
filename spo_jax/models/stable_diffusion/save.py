"""Writes a whole Stable Diffusion pipeline with an adapter merged into its weights, as one file."""

import dataclasses
from pathlib import Path

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free
from spo_jax.core.typing import Params
from spo_jax.models.save import merged_network
from spo_jax.models.stable_diffusion.architecture import Kind
from spo_jax.models.stable_diffusion.pipeline import StableDiffusion
from spo_jax.models.stable_diffusion.single_file import write_single_file
from spo_jax.weights.components import text_state
from spo_jax.weights.rules import to_state


def write_merged_file(
    out: Path, pipeline: StableDiffusion, lora: Params, scale: float, dtype: str = "float32", overwrite: bool = False
) -> None:
    """Writes one ``.safetensors`` file for the web UIs: the UNet with the adapter, autoencoder and text encoders.

    The file appears as a whole or not at all. Memory holds the pipeline's own weights and those of the file, nothing
    more.

    Args:
      out: file to write.
      pipeline: the base model.
      lora: tree of the adapter.
      scale: factor of the adapter's update.
      dtype: dtype of the weights in the file; ``float16`` halves its size.
      overwrite: whether a file at ``out`` is replaced.

    Raises:
      UserError: ``out`` exists, is the file from which the pipeline was read, or cannot be written; a weight is beyond
        the range of ``dtype``.
    """
    check_free(out, overwrite)
    if out.resolve() == pipeline.folder.resolve():
        raise UserError(f"{out} is the base model itself: choose another --out")
    target = np.dtype(dtype)
    with np.errstate(over="ignore"):  # `write_single_file` reports the weights that overflow by name.
        components = {
            name: text_state(params, target) if name.startswith("text_encoder") else to_state(params, target)
            for name, params in pipeline.params.items()
            if name != "unet"
        }
        components["unet"] = merged_network(pipeline, lora, scale, target)
    write_single_file(out, _file_kind(pipeline), components, dataclasses.asdict(pipeline.scheduler))


def _file_kind(pipeline: StableDiffusion) -> Kind:
    """Returns the kind of single file in whose layout a pipeline is written."""
    if pipeline.kind == "sdxl":
        return "sdxl"
    # OpenCLIP's text tower, which SD 2.x uses, has the exact GELU.
    return "sd21" if pipeline.text_encoder.config.hidden_act == "gelu" else "sd15"
