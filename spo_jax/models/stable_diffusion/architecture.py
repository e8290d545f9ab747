"""Detects which model a single-file checkpoint holds, and makes the configs that its diffusers folder would have.

Widths, block counts and depths are read from the shapes; the other values are facts of the published architectures,
which all fine-tunes share (see diffusers' ``infer_diffusers_model_type`` and the configs of the published folders).
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.models.stable_diffusion import ldm
from spo_jax.weights.messages import shorten

Kind = Literal["sd15", "sd21", "sdxl"]
State = Mapping[str, np.ndarray]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
# Prefixes of the components' keys in each kind of file.
PREFIXES: dict[str, dict[str, str]] = {
    "sd15": {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model.transformer."},
    "sd21": {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
# Components that hold an OpenCLIP tower; the other text encoders have transformers' names.
OPEN_CLIP = {("sd21", "text_encoder"), ("sdxl", "text_encoder_2")}

# Patterns of keys that occur only in other kinds of files, and the names of those kinds.
_OTHERS = (
    (r"(^|\.)(joint_blocks|x_block|context_embedder)\.", "Stable Diffusion 3"),
    (r"(^|\.)(double_blocks|single_blocks|double_stream_modulation\w*)\.", "Flux"),
    (r"^conditioner\.embedders\.0\.model\.", "the SDXL refiner"),
    (r"^control_model\.", "a ControlNet"),
    (r"^edm_(mean|std)$", "Playground v2.5"),
    (r"^lora_|\.lora_(down|up|A|B)\.|\.lora\.(down|up)\.", "a LoRA, which spo_jax.sample takes as --lora"),
    (r"^(down_blocks|conv_in|text_model|encoder\.(down_blocks|layers))\.", "one component of a diffusers folder"),
)
# UNets that take more than the noisy latents, by the number of channels that their input has more than their output.
_WIDER_INPUTS = {5: "an inpainting model", 4: "an InstructPix2Pix model", 3: "an upscaler", 1: "a depth model"}

_SAMPLE_SIZE = {"sd15": 64, "sd21": 96, "sdxl": 128}  # latents along a side
_SCALING_FACTOR = {"sd15": 0.18215, "sd21": 0.18215, "sdxl": 0.13025}
_HEAD_WIDTH = 64  # width of a head in all CLIP text towers and in the UNets of SD 2.x and SDXL


def detect(path: Path, state: State) -> Kind:
    """Returns the kind of a checkpoint from its names, which are LDM's or SGM's.

    Raises:
      UserError: the file is of another architecture, which the message names, or not a whole checkpoint.
    """
    for pattern, name in _OTHERS:
        if any(re.search(pattern, key) for key in state):
            raise UserError(f"{path} is {name}: expected a single-file checkpoint of SD 1.5, SD 2.1 or SDXL")
    for kind, prefixes in PREFIXES.items():
        if any(key.startswith(prefixes["text_encoder"]) for key in state):
            _check_inputs(path, state)
            return kind
    if any(key.startswith(UNET) for key in state):
        raise UserError(
            f"{path} does not have a known text encoder ({shorten(_starts(state))}): expected a whole checkpoint of "
            "SD 1.5, SD 2.1 or SDXL, not its UNet alone"
        )
    raise UserError(
        f"{path} is not a single-file checkpoint of SD 1.5, SD 2.1 or SDXL: expected {UNET}*, "
        f"found {shorten(_starts(state))}"
    )


def _starts(state: State) -> set[str]:
    """Returns the first two parts of the keys, such as ``model.diffusion_model.*``."""
    return {".".join(key.split(".")[:2]) + ".*" for key in state}


def _check_inputs(path: Path, state: State) -> None:
    """Refuses UNets whose input has other channels than the noisy latents."""
    first = state.get(f"{UNET}input_blocks.0.0.weight")
    last = state.get(f"{UNET}out.2.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return  # A later check reports missing keys and tensors of another shape.
    inputs = first.shape[1]
    outputs = last.shape[0]
    if inputs != outputs:
        name = _WIDER_INPUTS.get(inputs - outputs, "of an unknown architecture")
        raise UserError(
            f"{path} is {name}: its UNet takes {inputs} channels and returns {outputs}; "
            "only text-to-image models can be used"
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """A component's config in diffusers' form.

    Attributes:
      shown: fields whose values the weights show.
      facts: the other fields, with the values of all models of the kind.
    """

    shown: dict[str, Any]
    facts: dict[str, Any]


def unet_config(kind: Kind, state: State, layout: ldm.UNetLayout) -> Config:
    """Makes the config of ``unet/config.json``.

    Args:
      kind: kind of the checkpoint.
      state: the UNet's weights under diffusers' names.
      layout: block counts of the UNet.
    """
    widths = [state[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(layout.levels)]
    attends = [depth > 0 for depth in layout.depths]
    attention = "mid_block.attentions.0"
    shown = {
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": "text_time" if layout.size_embedding else None,
        "block_out_channels": widths,
        "cross_attention_dim": state[f"{attention}.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "in_channels": state["conv_in.weight"].shape[1],
        "layers_per_block": layout.layers,
        "out_channels": state["conv_out.weight"].shape[0],
        "transformer_layers_per_block": [max(depth, 1) for depth in layout.depths],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "use_linear_projection": state[f"{attention}.proj_in.weight"].ndim == 2,
    }
    facts = {
        "act_fn": "silu",
        "attention_head_dim": 8 if kind == "sd15" else [max(width // _HEAD_WIDTH, 1) for width in widths],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "sample_size": _SAMPLE_SIZE[kind],
        "upcast_attention": kind == "sd21",
    }
    if layout.size_embedding:
        shown["projection_class_embeddings_input_dim"] = state["add_embedding.linear_1.weight"].shape[1]
        facts["addition_time_embed_dim"] = 256
    return Config(shown, facts)


def vae_config(kind: Kind, state: State, levels: int, layers: int) -> Config:
    """Makes the config of ``vae/config.json``.

    Args:
      kind: kind of the checkpoint.
      state: the autoencoder's weights under diffusers' names.
      levels: number of levels.
      layers: ResNet blocks per level of the encoder.
    """
    widths = [state[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)]
    shown = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "layers_per_block": layers,
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    facts = {
        "act_fn": "silu",
        "force_upcast": kind == "sdxl",
        "norm_num_groups": 32,
        "sample_size": 8 * _SAMPLE_SIZE[kind],
        "scaling_factor": _SCALING_FACTOR[kind],
    }
    return Config(shown, facts)


def text_config(state: State, layers: int, open_clip: bool) -> Config:
    """Makes the config of ``text_encoder/config.json`` or ``text_encoder_2/config.json``.

    OpenCLIP's towers have the exact GELU, OpenAI's the quick one. An ``eos_token_id`` of 2 means "pool at the largest
    id".

    Args:
      state: the text encoder's weights under transformers' names.
      layers: number of layers.
      open_clip: whether it is an OpenCLIP tower.
    """
    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    projection = state.get("text_projection.weight")
    shown = {
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "hidden_size": width,
        "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
        "model_type": "clip_text_model",
        "num_hidden_layers": layers,
        "projection_dim": width if projection is None else projection.shape[0],
        "vocab_size": vocabulary,
    }
    facts = {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "layer_norm_eps": 1e-05,
        "num_attention_heads": max(width // _HEAD_WIDTH, 1),
        "pad_token_id": 1,
    }
    return Config(shown, facts)


def scheduler_config(state: State) -> dict[str, Any]:
    """Reads the scheduler's fields that fine-tunes of SDXL mark by empty tensors, as ComfyUI and web UIs do."""
    config: dict[str, Any] = {}
    if "v_pred" in state:
        config["prediction_type"] = "v_prediction"
    if "ztsnr" in state:
        config["rescale_betas_zero_snr"] = True
    return config
