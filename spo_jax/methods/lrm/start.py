"""The weights from which a latent reward model is trained: the diffusion model's own first half, or an earlier one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Key, Params
from spo_jax.methods.lrm.settings import LRMTrainSettings
from spo_jax.models.base import Pipeline
from spo_jax.models.stable_diffusion import sources
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.shapes import text_shapes
from spo_jax.parallel.sharding import place_weights, shardings
from spo_jax.rewards.common.latent_model import ENCODERS, LatentModel, head_shapes, make_model
from spo_jax.rewards.common.latent_weights import read_model
from spo_jax.rewards.common.lrm_files import LatentConfig, check_trainable, open_source
from spo_jax.rewards.common.protocol import Context
from spo_jax.weights import hub, store

_DEVIATION = 0.02  # of the weights of the image projection, as in the authors' trainer


class Start(NamedTuple):
    """A latent reward model before training.

    Attributes:
      model: the networks.
      params: their weights in float32, sharded over the mesh.
    """

    model: LatentModel
    params: Params


def network_of(settings: LRMTrainSettings, pipeline: Pipeline) -> LatentModel:
    """Makes the networks that go with a pipeline, without weights."""
    return make_model(
        config_of(pipeline), jnp.dtype(settings.dtype), settings.recomputed, guidance_scale=settings.guidance_scale
    )


def config_of(pipeline: Pipeline) -> LatentConfig:
    """Returns the configs of a latent reward model with the networks of a pipeline.

    Raises:
      UserError: the pipeline's network has no first half.
    """
    check_trainable(pipeline.kind)
    encoders = [getattr(pipeline, name, None) for name in ENCODERS]
    text = tuple(encoder.config for encoder in encoders if encoder is not None)
    return LatentConfig(str(pipeline.folder), pipeline.unet.config, text)


def load_start(settings: LRMTrainSettings, pipeline: Pipeline, key: Key, mesh: Mesh | None) -> Start:
    """Reads the weights to start from, in float32 whatever the dtype of the activations is.

    Args:
      settings: settings of the run.
      pipeline: the model whose latents are judged.
      key: key for the weights that no file holds.
      mesh: mesh on which the weights are placed; None places them on the first device.

    Raises:
      UserError: a file is missing, or does not fit.
    """
    model = network_of(settings, pipeline)
    if settings.init:
        context = Context(pipeline.kind, field="init", channels=pipeline.latent_shape[-1])
        folder, config = open_source(settings.init, context)
        read = read_model(folder, config, np.float32, mesh)
        same = read.config.unet == model.unet.config and read.config.text == config_of(pipeline).text
        if not same:
            raise UserError(
                f"config field init = {settings.init!r} has networks of another size than {pipeline.folder}, the model "
                "of config field model: expected one that was trained from it"
            )
        return Start(model, read.params)
    source = sources.open_source(pipeline.folder, settings.base)
    whole = unet_shapes(UNet2DConditionModel(pipeline.unet.config))
    kept = unet_shapes(model.unet).keys()
    params: dict[str, Any] = {
        "unet": {name: value for name, value in source.weights("unet", whole, np.float32).items() if name in kept}
    }
    for name, encoder in zip(ENCODERS, model.text, strict=False):
        params[name] = source.weights(name, text_shapes(encoder), np.float32)
    params = place_weights(params, mesh, title="the start of the latent reward model")
    return Start(model, params | _head(settings, model, key, mesh))


def _head(settings: LRMTrainSettings, model: LatentModel, key: Key, mesh: Mesh | None) -> Params:
    """Returns projections and scale before training."""
    text = None
    width = settings.projection
    if not model.projects_text:
        width = model.text[-1].config.projection_dim
    elif settings.clip:
        text = _text_projection(settings.clip, model.text[0].config.hidden_size)
        width = text.shape[1]
    shapes = head_shapes(model, width)

    def draw(key: Key) -> Params:
        image_key, text_key = jax.random.split(key)
        kernel = shapes["visual_projection"]["kernel"].shape
        head = {
            "visual_projection": {"kernel": _DEVIATION * jax.random.normal(image_key, kernel)},
            "logit_scale": jnp.float32(settings.scale),
        }
        if model.projects_text and text is None:
            kernel = shapes["text_projection"]["kernel"].shape
            head["text_projection"] = {"kernel": jax.random.normal(text_key, kernel) / np.sqrt(kernel[0])}
        return head

    head = _on_mesh(draw, mesh, key)
    return head if text is None else head | place_weights({"text_projection": {"kernel": text}}, mesh)


def _text_projection(name: str, width: int) -> np.ndarray:
    """Reads the text projection of a CLIP, [in out] in float32."""
    folder = hub.resolve(name, allow_patterns=("*.json", "*.safetensors", "*.bin"))
    state = store.read_state(folder, "transformers")
    found = state.get("text_projection.weight")
    if found is None or found.ndim != 2 or found.shape[1] != width:
        shape = "none" if found is None else f"one of {found.shape}"
        raise UserError(
            f"config field clip = {name!r}: expected a CLIP whose text_projection.weight takes the {width} features of "
            f"the model's text encoder; found {shape}"
        )
    return np.ascontiguousarray(found.T.astype(np.float32))


def _on_mesh(function: Callable[[Key], Params], mesh: Mesh | None, key: Key) -> Params:
    """Makes weights with ``function``, sharded over the mesh from the start."""
    out = None if mesh is None else shardings(jax.eval_shape(function, key), mesh, title="projections")
    return jax.jit(function, out_shardings=out)(key)
