"""Small torch networks, and the trees of shapes that Flax networks with the same names would have."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

from spo_jax.core.trees import unflatten


def _leaf(module: Any, name: str, parameter: Any) -> tuple[str, tuple[int, ...]]:
    shape = tuple(parameter.shape)
    if name == "weight" and isinstance(module, torch.nn.Linear):
        return "kernel", (shape[1], shape[0])
    if name == "weight" and isinstance(module, torch.nn.Conv2d):
        return "kernel", (shape[2], shape[3], shape[1], shape[0])
    if name == "weight":
        return ("embedding" if isinstance(module, torch.nn.Embedding) else "scale"), shape
    return name, shape


@pytest.fixture(scope="session")
def shape_tree() -> Callable[[Any], dict[str, Any]]:
    """A function from a torch module to the shapes of its Flax tree, by the kinds of its layers, not their names."""

    def build(root: Any) -> dict[str, Any]:
        flat = {}
        for module_name, module in root.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                leaf, shape = _leaf(module, name, parameter)
                prefix = re.sub(r"\.(\d+)", r"_\1", module_name).replace(".", "/")
                flat[f"{prefix}/{leaf}".lstrip("/")] = jax.ShapeDtypeStruct(shape, np.float32)
        return unflatten(flat)

    return build


@pytest.fixture(scope="session")
def torch_arrays() -> Callable[[Any], dict[str, np.ndarray]]:
    """A function from a torch module to its state dict as numpy arrays."""

    def arrays(module: Any) -> dict[str, np.ndarray]:
        return {name: value.detach().numpy() for name, value in module.state_dict().items()}

    return arrays


@pytest.fixture(scope="session")
def unet() -> Any:
    """A UNet of SD 1.5's kind, with 1x1 convolutions around its transformers."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()


@pytest.fixture(scope="session")
def sdxl_unet() -> Any:
    """A UNet of SDXL's kind, with linear projections, time ids and pooled text."""
    torch.manual_seed(1)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 16,
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
    ).eval()


@pytest.fixture(scope="session")
def vae() -> Any:
    """An AutoencoderKL with two levels."""
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
    ).eval()


def _text_config(**changes: Any) -> Any:
    sizes = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    special = dict(vocab_size=60, max_position_embeddings=12, bos_token_id=58, eos_token_id=59, pad_token_id=59)
    return transformers.CLIPTextConfig(**sizes, **special, **changes)


@pytest.fixture(scope="session")
def text_encoder() -> Any:
    """A CLIPTextModel, which has no projection."""
    torch.manual_seed(3)
    return transformers.CLIPTextModel(_text_config()).eval()


@pytest.fixture(scope="session")
def text_encoder_2() -> Any:
    """A CLIPTextModelWithProjection, like SDXL's second text encoder."""
    torch.manual_seed(4)
    return transformers.CLIPTextModelWithProjection(_text_config(projection_dim=20)).eval()


@pytest.fixture(scope="session")
def clip() -> Any:
    """A CLIPModel with both towers."""
    torch.manual_seed(5)
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=_text_config().to_dict(),
            vision_config=dict(**vision, image_size=12, patch_size=6),
            projection_dim=20,
        )
    ).eval()


@pytest.fixture(scope="session")
def golden_models(golden_dir: Path) -> Path:
    """The reference's model folders."""
    folder = golden_dir / "models"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder
