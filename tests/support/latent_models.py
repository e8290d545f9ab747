"""The smallest latent reward models, as their authors publish them and as they are written here."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.shapes import text_shapes
from spo_jax.rewards.common.latent_model import head_shapes, make_model
from spo_jax.rewards.common.lrm_files import LatentConfig
from spo_jax.toy import ASSETS
from spo_jax.weights import components, rules
from tests.support.networks import random_weights

PROJECTION = 12


def write_published(folder: Path, pipeline) -> Path:
    """Writes a random latent reward model for the latents of a pipeline, with a whole UNet and ``state_dict.pt``."""
    names = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipeline, name, None) is not None]
    encoders = [getattr(pipeline, name) for name in names]
    config = LatentConfig(str(folder), pipeline.unet.config, tuple(encoder.config for encoder in encoders))
    model = make_model(config, np.float32)
    width = encoders[-1].config.projection_dim if len(names) > 1 else PROJECTION
    shapes = {"unet": unet_shapes(UNet2DConditionModel(config.unet)), "head": head_shapes(model, width)}
    shapes |= {name: text_shapes(encoder) for name, encoder in zip(names, encoders, strict=True)}
    shapes["head"].pop("logit_scale")
    params = random_weights(7, shapes)
    components.write_component(folder / "unet", config_fields(config.unet), rules.to_state(params["unet"]))
    for name, encoder in zip(names, encoders, strict=True):
        state = components.text_state(params[name])
        components.write_component(folder / name, config_fields(encoder.config), state, kind="transformers")
        tokenizer = folder / name.replace("text_encoder", "tokenizer")
        tokenizer.symlink_to(ASSETS / "pipeline" / "tokenizer")
    projections = {name: value["kernel"].T for name, value in params["head"].items()}
    state = {name: {"weight": torch.tensor(value.copy())} for name, value in projections.items()}
    torch.save({**state, "logit_scale": 2.0}, folder / "state_dict.pt")
    return folder


def config_fields(config) -> dict:
    """The content of a ``config.json``."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
