"""Decoders of latents that are judged: the pipeline's own autoencoder, or a distilled one (TAESD)."""

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
    """The decoder of a pipeline's latents.

    Args:
      model: ``vae`` for the pipeline's own, or folder or hub id of a distilled one (AutoencoderTiny).
      mesh: where its weights go.
      abstract: give shapes instead of weights.
      field: the config field, for messages.

    Raises:
      UserError: the decoder cannot be read, or is for other latents.
    """
    if model == OWN:
        return Decoder(pipeline.params[OWN], pipeline.decode)
    if abstract and not Path(model).exists():
        folder, config = None, TinyVAEConfig.from_dict(TAESD)
    else:
        folder = resolve(model)
        file = folder / "config.json"
        config = TinyVAEConfig.from_dict(read_json_object(file), str(file))
    vae = AutoencoderTiny(config, pipeline.dtype)
    wanted = pipeline.latent_shape[2]
    found = config.latent_channels
    if wanted != found:
        raise UserError(
            f"config field {field} = {model!r}: decodes latents of {found} channels, but the model makes {wanted}"
        )
    if abstract:
        params = abstract_weights(vae_shapes(vae), pipeline.dtype, mesh)
    else:
        params = place_weights(load_vae(folder, vae_shapes(vae), dtype=pipeline.dtype), mesh, title=model)
    return decoder_of(vae, params)


def decoder_of(vae: AutoencoderTiny, params: Params) -> Decoder:
    """A distilled autoencoder as a decoder."""

    def decode(params: Params, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        return vae.apply({"params": params}, latents / vae.config.scaling_factor, method="decode")

    return Decoder(params, decode)
