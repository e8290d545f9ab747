"""A whole pipeline folder with an adapter in its weights."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.core.typing import Params
from spo_jax.models.lora import merge
from spo_jax.pipeline.build import Pipeline
from spo_jax.weights.diffusers import write_component
from spo_jax.weights.rules import to_state


def write_merged(out: Path, pipeline: Pipeline, lora: Params, scale: float) -> None:
    """Copies the pipeline's folder and replaces the UNet's weights by the merged ones, float32.

    The folder appears whole or not at all; what it was copied from stays as it is.

    Raises:
      UserError: ``out`` exists, or cannot be written.
    """
    if out.exists():
        raise UserError(f"--out={out} exists already: choose another folder")
    unet_config = read_json(pipeline.folder / "unet" / "config.json")
    state = to_state(merge(pipeline.params["unet"], lora, scale), np.float32)
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        shutil.copytree(pipeline.folder, temporary / "copy", ignore=_skip_unet_weights)
        write_component(temporary / "copy" / "unet", unet_config, state)
        os.replace(temporary / "copy", out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _skip_unet_weights(folder: str, names: list[str]) -> list[str]:
    """The old UNet weights in whatever form, and hidden folders of the hub's cache."""
    inside = Path(folder).name == "unet"
    return [name for name in names if name.startswith(".") or (inside and name != "config.json")]
