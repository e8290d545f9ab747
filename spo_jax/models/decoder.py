"""Decoders for latents that are judged: the pipeline's own autoencoder, or a distilled one (TAESD)."""

from pathlib import Path

from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.typing import Array, Float, Params
from spo_jax.models import resolve
from spo_jax.models.base import Decoder, Pipeline
from spo_jax.nn.shapes import vae_shapes
from spo_jax.nn.tiny_vae import TAESD, AutoencoderTiny, TinyVAEConfig
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.weights.components import load_vae

OWN = "vae"  # the pipeline's own autoencoder


def open_decoder(
    model: str, pipeline: Pipeline, mesh: Mesh | None = None, abstract: bool = False, field: str = "decoder"
) -> Decoder:
    """Opens a decoder for a pipeline's latents.

    Args:
      model: ``vae`` for the pipeline's own decoder, or folder or hub id of a distilled one (AutoencoderTiny).
      pipeline: the model whose latents are decoded.
      mesh: mesh on which its weights are placed; None places them on the first device.
      abstract: return shapes instead of weights.
      field: config field that names the decoder, for error messages.

    Raises:
      UserError: the decoder cannot be read, or decodes latents with another number of channels.
    """
    if model == OWN:
        return Decoder(pipeline.params[OWN], pipeline.decode)
    if abstract and not Path(model).exists():
        folder = None
        config = TinyVAEConfig.from_dict(TAESD)
    else:
        folder = resolve(model)
        file = folder / "config.json"
        config = TinyVAEConfig.from_dict(read_json_object(file), str(file))
    vae = AutoencoderTiny(config, pipeline.dtype)
    expected = pipeline.latent_shape[2]
    if config.latent_channels != expected:
        raise UserError(
            f"config field {field} = {model!r}: it decodes latents of {config.latent_channels} channels, "
            f"but the model makes {expected}; choose the decoder of this kind of model"
        )
    if abstract:
        params = abstract_weights(vae_shapes(vae), pipeline.dtype, mesh)
    else:
        params = place_weights(load_vae(folder, vae_shapes(vae), dtype=pipeline.dtype), mesh, title=model)
    return decoder_of(vae, params)


def decoder_of(vae: AutoencoderTiny, params: Params) -> Decoder:
    """Wraps a distilled autoencoder as a `Decoder`."""

    def decode(params: Params, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        return vae.apply({"params": params}, latents / vae.config.scaling_factor, method="decode")

    return Decoder(params, decode)
