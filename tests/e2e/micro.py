"""Micro models: pipelines and a preference model with random weights, in folders as commands read them.

They are the smallest networks that have every kind of part, so that programs compile in seconds. No test that uses them
depends on what a model has learned.
"""

import dataclasses
from pathlib import Path
from typing import Any

from spo_jax.core.files import read_json, write_json
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPTextModel
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.shapes import text_shapes, vae_shapes
from spo_jax.nn.vae import AutoencoderKL
from spo_jax.rewards.common.preference_model import write_spm
from spo_jax.toy import ASSETS
from spo_jax.toy.tokenizer import write_tokenizer
from spo_jax.weights.components import text_state, write_component
from spo_jax.weights.rules import to_state
from tests.support.networks import CLIP, TEXT, UNET, VAE, random_weights, small_clip

TOKENIZER = ASSETS / "spm" / "tokenizer"
# v-prediction keeps the latents of a random network near unit size, where predicted noise would blow them up.
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "prediction_type": "v_prediction", "timestep_spacing": "leading",
}  # fmt: skip
# SDXL's structure with one ResNet block a level: no attention on the first level, and deeper ones on the last.
SDXL_TEXT = dataclasses.replace(TEXT, num_hidden_layers=2, eos_token_id=2)
SDXL_UNET = dataclasses.replace(
    UNET, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2), cross_attention_dim=32,
    use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=TEXT.projection_dim + 6 * 4,
)  # fmt: skip


def write_micro(folder: Path) -> Path:
    """Writes a Stable Diffusion pipeline for images of 16 pixels and returns its folder."""
    _write_parts(folder, UNET, {"text_encoder": TEXT})
    parts = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    optional = {"feature_extractor": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}
    _write_index(folder, "StableDiffusionPipeline", parts, optional)
    return folder


def write_micro_sdxl(folder: Path) -> Path:
    """Writes an SDXL pipeline for images of 16 pixels and returns its folder."""
    _write_parts(folder, SDXL_UNET, {"text_encoder": SDXL_TEXT, "text_encoder_2": SDXL_TEXT})
    tokenizer = folder / "tokenizer_2"
    for name in ("tokenizer_config.json", "special_tokens_map.json"):  # SDXL's second one pads with "!", whose id is 0
        write_json(tokenizer / name, read_json(tokenizer / name) | {"pad_token": "!"})
    parts = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    parts |= {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    _write_index(folder, "StableDiffusionXLPipeline", parts, {"force_zeros_for_empty_prompt": True})
    return folder


def write_micro_spm(folder: Path, trained_on: str = "sd") -> Path:
    """Writes a step-aware preference model and returns its folder."""
    _, params = small_clip()
    write_spm(folder, CLIP, params, TOKENIZER, trained_on=trained_on)
    return folder


def _write_parts(folder: Path, unet: UNetConfig, encoders: dict[str, CLIPTextConfig]) -> None:
    unet_json = dataclasses.asdict(unet) | {"_class_name": "UNet2DConditionModel", "act_fn": "silu"}
    write_component(folder / "unet", unet_json, to_state(random_weights(0, unet_shapes(UNet2DConditionModel(unet)))))
    levels = len(VAE.block_out_channels)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    vae_json = dataclasses.asdict(VAE) | blocks | {"_class_name": "AutoencoderKL", "act_fn": "silu"}
    write_component(folder / "vae", vae_json, to_state(random_weights(1, vae_shapes(AutoencoderKL(VAE)))))
    for seed, (name, config) in enumerate(encoders.items(), 2):
        encoder = CLIPTextModel(config, projection=name == "text_encoder_2")
        kind = "CLIPTextModelWithProjection" if encoder.projection else "CLIPTextModel"
        text_json = dataclasses.asdict(config) | {
            "architectures": [kind], "model_type": "clip_text_model", "bos_token_id": 0, "pad_token_id": 1,
        }  # fmt: skip
        state = text_state(random_weights(seed, text_shapes(encoder)))
        write_component(folder / name, text_json, state, kind="transformers")
        write_tokenizer(folder / name.replace("text_encoder", "tokenizer"))


def _write_index(folder: Path, pipeline: str, text_parts: dict[str, str], more: dict[str, Any]) -> None:
    classes = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        **{name: ["transformers", kind] for name, kind in text_parts.items()},
    }
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {"_class_name": pipeline, "_diffusers_version": "0.30.0", "image_encoder": [None, None]}
    write_json(folder / "model_index.json", index | classes | more)
