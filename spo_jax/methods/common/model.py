"""The text-to-image model that settings name."""

import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax.core.progress import stage
from spo_jax.methods.common.settings import ModelSettings
from spo_jax.models import open_pipeline
from spo_jax.models.base import Pipeline


def open_model(settings: ModelSettings, mesh: Mesh | None, abstract: bool = False, trained: bool = True) -> Pipeline:
    """Opens the model of the settings.

    Args:
      settings: settings that name the model, its dtype and its parts.
      mesh: mesh on which the weights are placed; None places them on the first device.
      abstract: whether to return a pipeline with shapes instead of weights.
      trained: whether gradients flow through the model; otherwise ``settings.remat`` is ignored.

    Raises:
      UserError: the model is missing or cannot be read.
    """
    with stage(f"reading {settings.model}"):
        return open_pipeline(
            settings.model,
            revision=settings.revision or None,
            dtype=jnp.dtype(settings.dtype),
            remat=trained and settings.recomputed,
            mesh=mesh,
            vae=settings.vae,
            base=settings.base,
            abstract=abstract,
        )
