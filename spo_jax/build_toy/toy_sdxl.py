"""Writes a toy SDXL pipeline with random weights: ``python -m spo_jax.build_toy.toy_sdxl --out=build/toy_sdxl``.

The command takes seconds. The parts of the pipeline, their names and how they fit together are those of SDXL, but the
networks are narrow and untrained, so that its images are noise. With ``configs/toy_sdxl.py`` it exercises a whole SDXL
run on any machine.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from spo_jax.core.cli import run_command
from spo_jax.core.files import check_free, write_json
from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import Params
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.presets import SDXL_TEXT_1, SDXL_TEXT_2, SDXL_UNET, SDXL_VAE
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPTextModel
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.shapes import text_shapes, vae_shapes
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.toy.tokenizer import MAX_LENGTH, vocabulary, write_tokenizer
from spo_jax.weights.components import text_state, write_component
from spo_jax.weights.rules import to_state

# The published configs, except for their sizes.
_WORDS = {"max_position_embeddings": MAX_LENGTH, "num_attention_heads": 2, "num_hidden_layers": 3}
TEXT_1 = SDXL_TEXT_1 | _WORDS | {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16}
TEXT_2 = SDXL_TEXT_2 | _WORDS | {"hidden_size": 24, "intermediate_size": 48, "projection_dim": 24}
UNET = SDXL_UNET | {
    "addition_time_embed_dim": 8,
    "attention_head_dim": [1, 2, 3],
    "block_out_channels": [8, 16, 24],
    "cross_attention_dim": 16 + 24,
    "norm_num_groups": 4,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
    "sample_size": 8,
    "transformer_layers_per_block": [1, 1, 2],
}
VAE = SDXL_VAE | {"block_out_channels": [8] * 4, "norm_num_groups": 4, "sample_size": 64}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "force_zeros_for_empty_prompt": True,
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def run() -> None:
    """Runs the command."""
    out = flags.DEFINE_string("out", "build/toy_sdxl", "Write the pipeline to this folder.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace the files in --out.")

    def main(_) -> None:
        check_free(Path(out.value), overwrite.value)
        write_toy_sdxl(Path(out.value))
        print(f"wrote {out.value}")

    run_command(main)


def write_toy_sdxl(folder: Path, seed: int = 0) -> None:
    """Writes the pipeline (1.5 MB) in diffusers' layout.

    Args:
      folder: folder to write.
      seed: seed of the weights.

    Raises:
      UserError: the folder cannot be written.
    """
    rng = np.random.default_rng(seed)
    # UNet and autoencoder.
    unet = unet_shapes(UNet2DConditionModel(UNetConfig.from_dict(UNET)))
    vae = vae_shapes(AutoencoderKL(VAEConfig.from_dict(VAE)))
    write_component(folder / "unet", UNET, to_state(_random(rng, unet)))
    write_component(folder / "vae", VAE, to_state(_random(rng, vae)))
    # Text encoders.
    words = {"vocab_size": len(vocabulary()[0])}
    for name, config in (("text_encoder", TEXT_1 | words), ("text_encoder_2", TEXT_2 | words)):
        is_second = name == "text_encoder_2"
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(config), projection=is_second)
        kind = {"architectures": ["CLIPTextModelWithProjection" if is_second else "CLIPTextModel"]}
        state = text_state(_random(rng, text_shapes(encoder)))
        write_component(folder / name, config | kind, state, kind="transformers")
    # Tokenizers and scheduler.
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2")
    _pad_with_id_0(folder / "tokenizer_2")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", MODEL_INDEX)


def _random(rng: np.random.Generator, shapes: Params) -> Params:
    """Draws weights: kernels that preserve the size of their inputs, embeddings and biases near 0, norms near 1."""

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape, np.float32)
        if path.endswith("/kernel"):
            return noise / np.sqrt(np.prod(shape[:-1], dtype=np.float32))
        return 0.1 * noise + np.float32(path.endswith("/scale"))

    return unflatten({path: draw(path, leaf.shape) for path, leaf in flatten(shapes).items()})


def _pad_with_id_0(folder: Path) -> None:
    """Sets the padding of SDXL's second tokenizer, which is "!" with the id 0."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        fields: dict[str, Any] = json.loads((folder / name).read_text()) | {"pad_token": "!"}
        write_json(folder / name, fields)


if __name__ == "__main__":
    run()
