"""Small CLIPs with random weights, as transformers writes them, and what transformers makes of images and prompts."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from spo_jax.toy import ASSETS

TOKENIZER = ASSETS / "spm" / "tokenizer"
SIDE = 32  # of the input in pixels
LENGTH = 16  # of a prompt in tokens

_TEXT = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=LENGTH
)
_VISION = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)


def write_clip(
    folder: Path, width: int = 24, act: str = "gelu", scale: float = 20.0, vocabulary: int = 569
) -> CLIPModel:
    """Writes a CLIPModel with its tokenizer, and returns transformers' network.

    Args:
      folder: the folder to write.
      width: width of the features.
      act: activation, ``gelu`` or ``quick_gelu``.
      scale: exp(logit_scale).
      vocabulary: number of token embeddings; the tokenizer has 569 tokens.
    """
    torch.manual_seed(width)
    config = CLIPConfig(
        text_config=_TEXT
        | dict(vocab_size=vocabulary, max_position_embeddings=LENGTH, hidden_act=act, eos_token_id=568),
        vision_config=_VISION | dict(image_size=SIDE, patch_size=8, hidden_act=act),
        projection_dim=width,
    )
    model = CLIPModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases start at 0 and norms at 1, which would hide a swap
        parameter.data += 0.3 * torch.randn(parameter.shape) if parameter.ndim == 1 else 0
    model.logit_scale.data = torch.tensor(np.log(scale), dtype=torch.float32)
    model.save_pretrained(folder)
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    return model


def draw_images(count: int, height: int, width: int) -> np.ndarray:
    """Draws noise [count height width 3] in [-1, 1] whose values are bytes, as a file would hold them."""
    noise = np.random.default_rng(0).integers(0, 256, (count, height, width, 3))
    return noise.astype(np.float32) / 127.5 - 1


def bytes_of(images: np.ndarray) -> np.ndarray:
    """Converts images in [-1, 1] to bytes."""
    return np.round((images + 1) * 127.5).astype(np.uint8)


def processed(images: np.ndarray) -> torch.Tensor:
    """Prepares images with transformers' processor, the one on Pillow."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return processor(list(bytes_of(images)), return_tensors="pt")["pixel_values"]


def tokens(folder: Path, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids of prompts, padded to the full length."""
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer(list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")[
        "input_ids"
    ]


def features(model: CLIPModel, ids: torch.Tensor, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features of prompts and images, of length 1."""
    out = model(input_ids=ids, pixel_values=pixels)
    return out.text_embeds.numpy(), out.image_embeds.numpy()
