"""Pipelines, adapters and images for the tests of the model families, and reference networks in torch."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from spo_jax.models import open_pipeline
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.weights.lora import LoRA
from tests.models.helpers import FOLDER, IMAGES, PROMPTS, RANK, SCALE, random_adapter, unit
from tests.support.torch_checkpoints import (  # noqa: F401
    clip,
    golden_models,
    sdxl_unet,
    shape_tree,
    text_encoder,
    text_encoder_2,
    torch_arrays,
    unet,
    vae,
)
from tests.support.torch_networks import reference, unets  # noqa: F401


@pytest.fixture(scope="session")
def toy_pipe() -> Any:
    """The toy pipeline in diffusers."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="session")
def sdxl(tiny_sdxl: Path) -> Any:
    """The small SDXL pipeline with random weights."""
    return open_pipeline(tiny_sdxl)


@pytest.fixture(scope="session")
def adapter(toy: Any) -> Any:
    """A random adapter of the toy pipeline."""
    return random_adapter(toy.pipeline.params["unet"], std=0.2)


@pytest.fixture(scope="session")
def lora(adapter: Any) -> LoRA:
    """The adapter as it is written to files."""
    return LoRA(jax.tree.map(np.asarray, adapter), SCALE * RANK, RANK)


@pytest.fixture(scope="session")
def latents(toy: Any) -> np.ndarray:
    """Initial latents for `PROMPTS`."""
    return initial_latents(0, len(PROMPTS), toy.pipeline.latent_shape)


@pytest.fixture(scope="session")
def sampler(toy: Any) -> Sampler:
    """A sampler that draws two images at a time, so that the last batch of three is padded."""
    return Sampler(toy.pipeline, lora_scale=SCALE, batch=2, **IMAGES)


@pytest.fixture(scope="session")
def base_images(sampler: Sampler, latents: np.ndarray) -> np.ndarray:
    """Images of the toy pipeline in [0, 1]."""
    return unit(sampler(PROMPTS, latents))


@pytest.fixture(scope="session")
def adapted_images(sampler: Sampler, latents: np.ndarray, adapter: Any) -> np.ndarray:
    """Images of the toy pipeline with the adapter in [0, 1]."""
    return unit(sampler(PROMPTS, latents, adapter))
