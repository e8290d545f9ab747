"""Checks that the parts of a pipeline belong together, which the config of a single part cannot show."""

from collections.abc import Mapping
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.parts import PartSource
from spo_jax.models.stable_diffusion.sources import Source
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.vae import VAEConfig


def check_parts(
    source: Source,
    parts: Mapping[str, PartSource | Source],
    configs: Mapping[str, Any],
    tokenizers: Mapping[str, Tokenizer],
) -> None:
    """Refuses parts that come from different models.

    Args:
      source: source of the pipeline.
      parts: source of each part that does not come from ``source``, by name.
      configs: config of each component by name, with ``text_encoder_2`` if the pipeline is SDXL's.
      tokenizers: tokenizers by name, with ``tokenizer_2`` if the pipeline is SDXL's.

    Raises:
      UserError: two parts do not fit; the message names the file and the field.
    """
    unet = configs["unet"]
    where = parts.get("unet", source).where("unet")
    if unet.sample_size is None:
        raise UserError(f"{where}: sample_size is missing: expected the side of the latents, which sets the image size")
    _check_vae(unet, configs["vae"], parts.get("vae", source).where("vae"))
    encoders = [configs[name] for name in ("text_encoder", "text_encoder_2") if name in configs]
    width = sum(config.hidden_size for config in encoders)
    if unet.cross_attention_dim != width:
        several = "the text encoders' hidden_size add up" if len(encoders) > 1 else "text_encoder's hidden_size comes"
        raise UserError(f"{where}: cross_attention_dim = {unet.cross_attention_dim}, but {several} to {width}")
    _check_size_conditions(source, where, unet, encoders)
    for name, tokenizer in tokenizers.items():
        encoder = name.replace("tokenizer", "text_encoder")
        text = configs[encoder]
        tokenizer.check_fits(text.vocab_size, text.max_position_embeddings, source.where(encoder))
    lengths = {name: tokenizer.length for name, tokenizer in tokenizers.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{source.base}: tokenizer and tokenizer_2 cut prompts at {lengths}, expected one length")


def _check_vae(unet: UNetConfig, vae: VAEConfig, where: str) -> None:
    if vae.latent_channels != unet.in_channels:
        raise UserError(
            f"{where}: latent_channels = {vae.latent_channels}, but the UNet takes latents of {unet.in_channels}: this "
            "autoencoder belongs to another kind of model"
        )


def _check_size_conditions(source: Source, where: str, unet: UNetConfig, encoders: list[CLIPTextConfig]) -> None:
    """Checks that exactly SDXL's UNet takes pooled text and time ids, and that their widths fit."""
    is_sdxl = source.kind == "sdxl"
    if unet.wants_size_conditions != is_sdxl:
        sdxl_expects = "'text_time', because this is a StableDiffusionXLPipeline"
        expected = sdxl_expects if is_sdxl else "null in a StableDiffusionPipeline"
        raise UserError(f"{where}: addition_embed_type = {unet.addition_embed_type!r}, expected {expected}")
    if is_sdxl:
        found = unet.projection_class_embeddings_input_dim
        projection = encoders[-1].projection_dim
        expected = projection + 6 * unet.addition_time_embed_dim
        if found != expected:
            raise UserError(
                f"{where}: projection_class_embeddings_input_dim = {found}, expected {expected}: 6 times "
                f"addition_time_embed_dim plus text_encoder_2's projection_dim, {projection}"
            )
