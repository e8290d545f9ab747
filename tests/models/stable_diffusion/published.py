"""diffusers' UNets of the published sizes on torch's meta device, which allocates nothing."""

import functools
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from spo_jax.models.stable_diffusion import presets

UNETS = {"sd15": presets.SD15_UNET, "sd21": presets.SD21_UNET, "sdxl": presets.SDXL_UNET}


@functools.cache
def published_unet(kind: str) -> Any:
    """Makes a published UNet, once for all tests."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNETS[kind])
