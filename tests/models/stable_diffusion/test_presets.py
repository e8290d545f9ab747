"""The published networks have the names, shapes and counts of the libraries at true size; nothing is allocated."""

import math

import diffusers
import numpy as np
import pytest
import torch
import transformers

from spo_jax.core.trees import flatten
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPModel, CLIPTextModel
from spo_jax.nn.clip_config import CLIP_H, CLIPConfig, CLIPTextConfig
from spo_jax.nn.lora import target_shapes
from spo_jax.nn.shapes import clip_shapes, text_shapes, vae_shapes
from spo_jax.nn.tiny_vae import TAESD, AutoencoderTiny, TinyVAEConfig
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.weights import rules
from tests.models.stable_diffusion.published import UNETS, published_unet


def _unet(config):
    kind = next(kind for kind, preset in UNETS.items() if preset is config)
    return published_unet(kind), unet_shapes(UNet2DConditionModel(UNetConfig.from_dict(config)))


def _vae(config):
    return diffusers.AutoencoderKL.from_config(config), vae_shapes(AutoencoderKL(VAEConfig.from_dict(config)))


def _tiny_vae(config):
    theirs = {key: value for key, value in config.items() if key != "block_out_channels"}  # Its class does not take it.
    return diffusers.AutoencoderTiny.from_config(theirs), vae_shapes(AutoencoderTiny(TinyVAEConfig.from_dict(config)))


def _text(config):
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    return theirs, text_shapes(CLIPTextModel(CLIPTextConfig.from_dict(config)))["text_model"]


def _projected_text(config):
    theirs = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
    return theirs, text_shapes(CLIPTextModel(CLIPTextConfig.from_dict(config), projection=True))


def _clip(config):
    return transformers.CLIPModel(transformers.CLIPConfig(**config)), clip_shapes(
        CLIPModel(CLIPConfig.from_dict(config))
    )


# Config, function to both libraries' networks, tensors, and parameters in millions, as in the published files.
NETWORKS = {
    "SD15_UNET": (presets.SD15_UNET, _unet, 686, 859.521),
    "SD21_UNET": (presets.SD21_UNET, _unet, 686, 865.911),
    "SDXL_UNET": (presets.SDXL_UNET, _unet, 1680, 2567.464),
    "SD15_VAE": (presets.SD15_VAE, _vae, 248, 83.654),
    "TAESD": (TAESD, _tiny_vae, 134, 2.445),
    "SD15_TEXT": (presets.SD15_TEXT, _text, 196, 123.060),
    "SDXL_TEXT_2": (presets.SDXL_TEXT_2, _projected_text, 517, 694.660),
    "CLIP_H": (CLIP_H, _clip, 910, 986.109),
}
# Number of LoRA targets, and parameters in millions at rank 4.
LORA_TARGETS = {"SD15_UNET": (128, 0.797), "SD21_UNET": (128, None), "SDXL_UNET": (560, 5.806)}
# SD 2.1's blocks are those of SD 1.5 with SDXL's linear projections.
SLOW = ("SD21_UNET",)


def _torch_shape(path, leaf):
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(leaf.shape)) if path.endswith("/kernel") else None
    return tuple(leaf.shape[axis] for axis in axes) if axes else tuple(leaf.shape)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NETWORKS]
)
def test_names_and_shapes_are_those_of_the_library(name):
    config, build, tensors, millions = NETWORKS[name]
    with torch.device("meta"):
        theirs, shapes = build(config)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    flat = flatten(shapes)
    ours = {rules.torch_key(path.split("/")): _torch_shape(path, leaf) for path, leaf in flat.items()}
    assert ours == expected
    assert len(flat) == len(ours) == tensors  # No two of our leaves have the same name in torch.
    assert round(sum(math.prod(leaf.shape) for leaf in flat.values()) / 1e6, 3) == millions
    # The reader of files accepts all of them; the arrays are views of one number.
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in expected.items()}
    filled = rules.to_tree(state, shapes, name)
    assert {path: leaf.shape for path, leaf in flatten(filled).items()} == {
        path: leaf.shape for path, leaf in flat.items()
    }
    if name in LORA_TARGETS:
        _check_lora(target_shapes(shapes), *LORA_TARGETS[name], theirs)


def _check_lora(targets, count, millions, theirs):
    """Checks that the targets are the four projections of every Attention module of the reference."""
    attentions = {name for name, m in theirs.named_modules() if type(m).__name__ == "Attention"}
    expected = {f"{name}.{projection}" for name in attentions for projection in ("to_q", "to_k", "to_v", "to_out.0")}
    assert {rules.module_name(path.split("/")) for path in targets} == expected
    assert len(targets) == count
    if millions is not None:
        assert round(4 * sum(map(sum, targets.values())) / 1e6, 3) == millions


def test_sdxl_shares_networks_with_sd15():
    """The first text encoder is the same, and the autoencoder differs only in facts about its latents."""
    assert presets.SDXL_TEXT_1 is presets.SD15_TEXT
    facts = ("force_upcast", "sample_size", "scaling_factor")
    assert _without(presets.SDXL_VAE, facts) == _without(presets.SD15_VAE, facts)
    assert [presets.SDXL_VAE[name] for name in facts] == [True, 1024, 0.13025]


def _without(config, names):
    return {name: value for name, value in config.items() if name not in names}


def test_pipelines_have_the_configs_of_their_components():
    assert presets.SD15 == {
        "unet": presets.SD15_UNET,
        "vae": presets.SD15_VAE,
        "text_encoder": presets.SD15_TEXT,
        "scheduler": presets.SCHEDULER,
    }
    assert presets.SDXL == {
        "unet": presets.SDXL_UNET,
        "vae": presets.SDXL_VAE,
        "text_encoder": presets.SDXL_TEXT_1,
        "text_encoder_2": presets.SDXL_TEXT_2,
        "scheduler": presets.SCHEDULER,
    }


def test_all_presets_are_checked():
    """A preset of a network that is not in NETWORKS would not be checked."""
    public = {name for name, value in vars(presets).items() if isinstance(value, dict) and name.isupper()}
    checked = NETWORKS.keys() | {"SDXL_VAE", "SDXL_TEXT_1", "SD15", "SDXL", "SCHEDULER"}
    public -= {"CLIP_L_TEXT"}  # It is defined in nn.
    assert {name for name in public if not name.startswith("_")} == checked - {"TAESD", "CLIP_H"}
