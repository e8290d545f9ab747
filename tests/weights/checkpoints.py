"""Small torch models of the kinds that are published as single files, and their states."""

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

KINDS = ("sd15", "sd21", "sdxl")
_UP, _DOWN, _PLAIN = "CrossAttnUpBlock2D", "CrossAttnDownBlock2D", ("DownBlock2D", "UpBlock2D")
# The widths are divisible by the published numbers of groups and heads, which a file does not contain.
UNETS = {
    "sd15": dict(
        block_out_channels=(32, 32, 64),
        down_block_types=(_DOWN, _DOWN, _PLAIN[0]),
        up_block_types=(_PLAIN[1], _UP, _UP),
        attention_head_dim=8,
        sample_size=64,
    ),
    "sdxl": dict(
        block_out_channels=(32, 64, 64),
        down_block_types=(_PLAIN[0], _DOWN, _DOWN),
        up_block_types=(_UP, _UP, _PLAIN[1]),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=40 + 6 * 256,
        sample_size=128,
    ),
}
UNETS["sd21"] = UNETS["sd15"] | dict(
    attention_head_dim=(1, 1, 1), use_linear_projection=True, upcast_attention=True, sample_size=96
)


def text_encoder_of(act: str, projection: int | None = None) -> Any:
    """Makes a CLIP text tower; with a projection it is SDXL's second one."""
    config = transformers.CLIPTextConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, vocab_size=60, hidden_act=act,
        max_position_embeddings=12, bos_token_id=0, eos_token_id=2, pad_token_id=1, projection_dim=projection or 64,
    )  # fmt: skip
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return cls(config)


def model_of(kind: str) -> dict[str, Any]:
    """Makes the torch networks of a kind, by component."""
    torch.manual_seed(KINDS.index(kind))
    layers = 2 if kind != "sd21" else 1
    vae = dict(
        block_out_channels=(32, 32, 64), layers_per_block=2, scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=8 * UNETS[kind]["sample_size"], force_upcast=kind == "sdxl",
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(cross_attention_dim=24, layers_per_block=layers, **UNETS[kind])
    parts = {"unet": unet, "vae": diffusers.AutoencoderKL(**vae)}
    parts["text_encoder"] = text_encoder_of("gelu" if kind == "sd21" else "quick_gelu")
    return parts | ({"text_encoder_2": text_encoder_of("gelu", 40)} if kind == "sdxl" else {})


def state_of(module: Any) -> dict[str, np.ndarray]:
    """Returns a network's weights under the names in diffusers folders."""
    prefixed = isinstance(module, transformers.CLIPTextModel)
    return {
        f"text_model.{name.removeprefix('text_model.')}" if prefixed else name: value.numpy()
        for name, value in module.state_dict().items()
    }


def assert_same(state: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> None:
    """Asserts that two states have the same names and values."""
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(state[name]), array, err_msg=name)
