"""An earlier checkpoint of the toy's diffusion model: the same networks after a short training."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from spo_jax.build_toy import base
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.models.base import Pipeline
from spo_jax.toy import world
from spo_jax.weights.components import text_state, write_component
from spo_jax.weights.rules import to_state

STEPS = 700  # base.STEPS make the shipped model
IMAGES = 8000


def write_earlier(folder: Path, pipeline: Pipeline, steps: int = STEPS) -> None:
    """Trains UNet and text encoder of a pipeline of the toy from random weights, and writes them as a pipeline.

    Args:
      folder: folder to write, which appears as a whole or not at all.
      pipeline: the pipeline that lends everything else.
      steps: number of training steps.

    Raises:
      UserError: ``folder`` cannot be written.
    """
    # Train.
    prompts = [*world.PROMPTS, ""]
    ids = dict(zip(prompts, pipeline.tokenizer(prompts), strict=True))
    data = base.encode_scenes(pipeline.params["vae"], pipeline.vae.config, ids, IMAGES, seed=20)
    trained = base.train_base(data, ids[""], pipeline.text_encoder.config, seed=2, steps=steps)
    # Write the copy aside, and name it when it is complete.
    half = np.float16
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
            copy = Path(aside) / "copy"
            shutil.copytree(pipeline.folder, copy)
            configs = {name: read_json_object(copy / name / "config.json") for name in ("unet", "text_encoder")}
            write_component(copy / "unet", configs["unet"], to_state(trained["unet"], half))
            states = text_state(trained["text_encoder"], half)
            write_component(copy / "text_encoder", configs["text_encoder"], states, kind="transformers")
            copy.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
