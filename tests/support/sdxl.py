"""A small SDXL pipeline with random weights and SDXL's structure, written by diffusers.

Names, block types and depths are the published ones, except for the number of transformer layers; the networks are
narrow. Biases and norms are random, because at 0 and 1 a swapped one would have no effect.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ASSETS = Path(__file__).resolve().parents[2] / "spo_jax" / "toy" / "assets"
TOKENIZER = ASSETS / "pipeline" / "tokenizer"
PROJECTION, TIME_WIDTH = 10, 6
# The published file, which is another sampler's, although it runs as DDIM.
SCHEDULER = dict(
    beta_end=0.012, beta_schedule="scaled_linear", beta_start=0.00085, interpolation_type="linear",
    num_train_timesteps=1000, prediction_type="epsilon", steps_offset=1, timestep_spacing="leading",
    use_karras_sigmas=False,
)  # fmt: skip
UNET = dict(
    sample_size=8, block_out_channels=(8, 16, 24), layers_per_block=2, norm_num_groups=4, cross_attention_dim=16 + 24,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(1, 2, 3), transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=TIME_WIDTH,
    projection_class_embeddings_input_dim=PROJECTION + 6 * TIME_WIDTH,
)  # fmt: skip
VAE = dict(
    block_out_channels=(8,) * 4, layers_per_block=2, norm_num_groups=4, latent_channels=4, sample_size=64,
    scaling_factor=0.13025, force_upcast=True,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip


def _text_config(width: int, act: str) -> CLIPTextConfig:
    """Makes a config like the published ones, whose eos_token_id 2 means "the largest id"."""
    return CLIPTextConfig(
        vocab_size=569, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=16, hidden_act=act, projection_dim=PROJECTION,
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def _random(module: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def write_tokenizer_2(folder: Path) -> None:
    """Writes the toy vocabulary in the form of SDXL's second tokenizer: old files, padded with "!", whose id is 0."""
    folder.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, folder / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        fields = json.loads((TOKENIZER / name).read_text()) | {"pad_token": "!"}
        (folder / name).write_text(json.dumps(fields))


def write_tiny_sdxl(folder: Path) -> Path:
    """Writes the pipeline (2 MB); returns its folder."""
    write_tokenizer_2(folder / "second")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionXLPipeline(
            unet=_random(UNet2DConditionModel(**UNET), 1),
            vae=_random(AutoencoderKL(**VAE), 2),
            text_encoder=_random(CLIPTextModel(_text_config(16, "quick_gelu")), 3),
            text_encoder_2=_random(CLIPTextModelWithProjection(_text_config(24, "gelu")), 4),
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "second"),
            scheduler=EulerDiscreteScheduler(**SCHEDULER),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    # The library writes tokenizers in its newest form; the published second one has the old form.
    shutil.rmtree(folder / "tokenizer_2")
    (folder / "second").rename(folder / "tokenizer_2")
    return folder
