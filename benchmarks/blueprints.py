"""The models that are measured, as configs in the form of their own libraries, by size.

``micro`` random weights, the smallest networks that have every kind of block: for trying the scripts out
``tiny``  the pipeline shipped in the package, with its weights
``small`` random weights, some ten times the work of tiny; Stable Diffusion's structure at a sixth of its width
``sd15``  random weights, Stable Diffusion 1.5 and CLIP ViT-H/14 at their true sizes
``sdxl``  random weights, SDXL with the autoencoder that needs no float32, and CLIP ViT-H/14
"""

import dataclasses
from typing import Any

from spo_jax.nn.tiny_vae import TAESD
from spo_jax.core.files import read_json
from spo_jax.models.stable_diffusion import presets
from spo_jax.nn import clip_config
from spo_jax.toy import ASSETS

SIZES = ("micro", "tiny", "small", "sd15", "sdxl")


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """Configs of one size: UNet, autoencoder, text encoders, preference model, distilled decoder, schedule."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    spm: dict[str, Any]
    tiny_vae: dict[str, Any]
    scheduler: dict[str, Any]
    text_encoder_2: dict[str, Any] | None = None


# Stable Diffusion's, but that what the networks predict is taken as a velocity: random noise predictions would blow the
# latents up until 16-bit floats no longer tell candidates apart; as velocities they leave them near unit size.
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
}


def blueprint(size: str) -> Blueprint:
    """The models of a size, one of `SIZES`."""
    return {"micro": _micro, "tiny": _tiny, "small": _small, "sd15": _sd15, "sdxl": _sdxl}[size]()


def _tiny() -> Blueprint:
    config = lambda *parts: read_json(ASSETS.joinpath(*parts))  # noqa: E731
    vae = config("pipeline", "vae", "config.json")
    return Blueprint(
        unet=config("pipeline", "unet", "config.json"),
        vae=vae,
        text_encoder=config("pipeline", "text_encoder", "config.json"),
        spm=config("spm", "config.json"),
        tiny_vae=_tiny_vae(vae),
        scheduler=config("pipeline", "scheduler", "scheduler_config.json"),
    )


def _micro() -> Blueprint:
    widths = {"vae": [8, 16], "unet": [8, 16], "heads": 2, "groups": 4, "context": 16}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    return _scaled_down(widths, latents=8, text=tower, vision=tower, image_size=16, layers=1)


def _small() -> Blueprint:
    widths = {"vae": [16, 32, 64], "unet": [56, 112, 224], "heads": 4, "groups": 8, "context": 96}
    text = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4, "num_hidden_layers": 4}
    vision = {"hidden_size": 160, "intermediate_size": 640, "num_attention_heads": 4, "num_hidden_layers": 6}
    return _scaled_down(widths, latents=16, text=text, vision=vision, image_size=56, layers=2)


def _scaled_down(
    widths: dict[str, Any], latents: int, text: dict[str, int], vision: dict[str, int], image_size: int, layers: int
) -> Blueprint:
    """Stable Diffusion's structure with other widths and fewer levels; the last level has no attention, as there."""
    levels = len(widths["unet"])
    vae = {
        **presets.SD15_VAE,
        "block_out_channels": widths["vae"],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths["vae"]),
        "layers_per_block": layers,
        "norm_num_groups": widths["groups"],
        "sample_size": latents * 2 ** (len(widths["vae"]) - 1),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths["vae"]),
    }
    unet = {
        **presets.SD15_UNET,
        "attention_head_dim": widths["heads"],
        "block_out_channels": widths["unet"],
        "cross_attention_dim": widths["context"],
        "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        "layers_per_block": layers,
        "norm_num_groups": widths["groups"],
        "sample_size": latents,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
    }
    words = {**text, "projection_dim": text["hidden_size"], "vocab_size": 1000}
    pictures = {**vision, "image_size": image_size, "patch_size": 8, "projection_dim": text["hidden_size"]}
    spm = {
        **clip_config.CLIP_H,
        "projection_dim": text["hidden_size"],
        "text_config": {**clip_config.CLIP_H["text_config"], **words},
        "vision_config": {**clip_config.CLIP_H["vision_config"], **pictures},
    }
    return Blueprint(
        unet=unet,
        vae=vae,
        text_encoder={**presets.SD15_TEXT, **words},
        spm=spm,
        tiny_vae=_tiny_vae(vae),
        scheduler=_SCHEDULER,
    )


def _sd15() -> Blueprint:
    return Blueprint(
        unet=presets.SD15_UNET,
        vae=presets.SD15_VAE,
        text_encoder=presets.SD15_TEXT,
        spm=clip_config.CLIP_H,
        tiny_vae=TAESD,
        scheduler=_SCHEDULER,
    )


def _sdxl() -> Blueprint:
    vae = {**presets.SDXL_VAE, "force_upcast": False}  # as that of the recipe, madebyollin/sdxl-vae-fp16-fix
    parts = {"unet": presets.SDXL_UNET, "text_encoder": presets.SDXL_TEXT_1, "text_encoder_2": presets.SDXL_TEXT_2}
    return dataclasses.replace(_sd15(), vae=vae, **parts)


def _tiny_vae(vae: dict[str, Any]) -> dict[str, Any]:
    """TAESD's structure for another autoencoder's latents: of the same enlargement, half as wide as its last level."""
    levels, width = len(vae["block_out_channels"]), vae["block_out_channels"][0] // 2
    return {
        **TAESD,
        "latent_channels": vae["latent_channels"],
        "encoder_block_out_channels": [width] * levels,
        "decoder_block_out_channels": [width] * levels,
        "block_out_channels": [width] * levels,
        "num_encoder_blocks": [1] + [3] * (levels - 1),
        "num_decoder_blocks": [3] * (levels - 1) + [1],
    }
