"""Opens a text-to-image model of any family."""

import os

import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax import toy
from spo_jax.core.files import local_path
from spo_jax.core.typing import DType
from spo_jax.models import families, family_module, family_of, resolve
from spo_jax.models.base import Pipeline
from spo_jax.weights import hub

_CONFIG_FILES = ("model_index.json", "*/config.json", "scheduler/*.json")


def open_pipeline(
    model: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: DType = jnp.float32,
    remat: bool | str = False,
    mesh: Mesh | None = None,
    vae: str | os.PathLike = "",
    unet: str | os.PathLike = "",
    base: str | os.PathLike = "",
    abstract: bool = False,
) -> Pipeline:
    """Reads a text-to-image model from a diffusers folder or a single-file checkpoint.

    Args:
      model: folder, hub id, ``"toy"``, or single-file checkpoint.
      revision: branch, tag or commit of a hub id.
      dtype: dtype of weights and activations; SDXL's autoencoder is float32 if its config says `force_upcast`.
      remat: whether the trained network uses gradient checkpointing, or what it keeps: one of
        `spo_jax.nn.remat.KEEPS`.
      mesh: mesh on which the weights are placed; None places them on the first device.
      vae: folder or hub id of an autoencoder that replaces the model's own.
      unet: a UNet that replaces the model's own, which has to be of the same kind: a folder with its ``config.json`` or
        with a folder ``unet``, or ``OWNER/NAME`` or ``OWNER/NAME/FOLDER`` on the hub. Only the UNet is fetched.
      base: folder or hub id whose tokenizers and scheduler a single file uses; by default the published model of its
        architecture.
      abstract: return shapes instead of weights, for programs that are compiled but not run. Only configs are read,
        and those of published models are known without downloading them.

    Raises:
      UserError: the model does not belong to any family, or parts of it are missing or do not fit; the message names
        the file and the field.
    """
    options = {"dtype": dtype, "remat": remat, "mesh": mesh, "vae": vae, "unet": unet}
    is_remote = str(model) != toy.NAME and not local_path(model).exists()
    if abstract and is_remote:
        for family in families():
            published = family_module(family, "pipeline").load_published(str(model), **options)
            if published is not None:
                return published
        path = hub.resolve(model, revision, allow_patterns=_CONFIG_FILES)
    else:
        path = resolve(model, revision)
    return family_module(family_of(path), "pipeline").load(path, **options, base=base, abstract=abstract)
