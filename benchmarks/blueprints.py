"""The models that are measured, by size, as configs in the form of their own libraries.

``micro`` random weights, the smallest networks that have every kind of block, for trying the scripts out
``toy``   the pipeline shipped in the package, with its weights
``small`` random weights, about ten times the work of toy; Stable Diffusion's structure at a sixth of its width
``sd15``  random weights, Stable Diffusion 1.5 and CLIP ViT-H/14 at their true sizes
``sdxl``  random weights, SDXL with the autoencoder that does not need float32, and CLIP ViT-H/14
"""

import dataclasses
from pathlib import Path
from typing import Any

from spo_jax.core.files import read_json, write_json
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.sources import SCHEDULER_FILE
from spo_jax.nn.clip_config import CLIP_H
from spo_jax.nn.tiny_vae import TAESD
from spo_jax.toy import ASSETS

SIZES = ("micro", "toy", "small", "sd15", "sdxl")
Config = dict[str, Any]

# Stable Diffusion's schedule, except that the networks' output is taken as a velocity: random noise predictions would
# grow the latents until 16-bit floats no longer distinguish candidates, and as velocities they leave them near unit
# size.
_SCHEDULER: Config = {**presets.SCHEDULER, "prediction_type": "v_prediction"}


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """The configs of one size.

    Attributes:
      pipeline: config of each component of the pipeline and of its scheduler, as in `presets.SD15`.
      spm: config of the preference model.
      tiny_vae: config of the distilled decoder.
    """

    pipeline: dict[str, Config]
    spm: Config
    tiny_vae: Config


def blueprint(size: str) -> Blueprint:
    """Returns the configs of a size, one of `SIZES`."""
    return {"micro": _micro, "toy": _toy, "small": _small, "sd15": _sd15, "sdxl": _sdxl}[size]()


def write_configs(configs: Blueprint, folder: Path) -> None:
    """Writes the configs without weights: enough to open the models as abstract ones.

    The pipeline is in ``folder`` itself, the preference model in ``spm`` and the distilled decoder in ``tiny_vae``.
    """
    xl = "text_encoder_2" in configs.pipeline
    write_json(folder / "model_index.json", {"_class_name": f"StableDiffusion{'XL' if xl else ''}Pipeline"})
    for name, config in configs.pipeline.items():
        write_json(folder / name / (SCHEDULER_FILE if name == "scheduler" else "config.json"), config)
    write_json(folder / "spm" / "config.json", configs.spm)
    write_json(folder / "tiny_vae" / "config.json", configs.tiny_vae)


def _toy() -> Blueprint:
    folder = ASSETS / "pipeline"
    pipeline = {name: read_json(folder / name / "config.json") for name in ("unet", "vae", "text_encoder")}
    pipeline["scheduler"] = read_json(folder / "scheduler" / SCHEDULER_FILE)
    return Blueprint(pipeline, read_json(ASSETS / "spm" / "config.json"), _tiny_vae(pipeline["vae"]))


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
    """Returns Stable Diffusion's structure with other widths and fewer levels; its last level has no attention either.

    Args:
      widths: channels of the levels of ``vae`` and ``unet``, attention ``heads``, norm ``groups``, and the width of the
        text that is the UNet's ``context``.
      latents: side of the latents.
      text: fields of both text towers.
      vision: fields of the vision tower.
      image_size: side of the vision tower's images.
      layers: layers per block.
    """
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
    projection = {"projection_dim": text["hidden_size"]}
    text = {**text, **projection, "vocab_size": 1000}
    vision = {**vision, **projection, "image_size": image_size, "patch_size": 8}
    spm = {
        **CLIP_H,
        **projection,
        "text_config": {**CLIP_H["text_config"], **text},
        "vision_config": {**CLIP_H["vision_config"], **vision},
    }
    text_encoder = {**presets.SD15_TEXT, **text}
    pipeline = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "scheduler": _SCHEDULER}
    return Blueprint(pipeline, spm, _tiny_vae(vae))


def _sd15() -> Blueprint:
    return Blueprint(presets.SD15 | {"scheduler": _SCHEDULER}, CLIP_H, TAESD)


def _sdxl() -> Blueprint:
    vae = {**presets.SDXL_VAE, "force_upcast": False}  # as in the recipe's autoencoder, madebyollin/sdxl-vae-fp16-fix
    return Blueprint(presets.SDXL | {"vae": vae, "scheduler": _SCHEDULER}, CLIP_H, TAESD)


def _tiny_vae(vae: Config) -> Config:
    """Returns TAESD's structure for another autoencoder's latents: as much enlargement, half its last level's width."""
    levels = len(vae["block_out_channels"])
    width = vae["block_out_channels"][0] // 2
    return {
        **TAESD,
        "latent_channels": vae["latent_channels"],
        "encoder_block_out_channels": [width] * levels,
        "decoder_block_out_channels": [width] * levels,
        "block_out_channels": [width] * levels,
        "num_encoder_blocks": [1] + [3] * (levels - 1),
        "num_decoder_blocks": [3] * (levels - 1) + [1],
    }
