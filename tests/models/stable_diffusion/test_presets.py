"""The published networks at their true size, without allocating them: names, shapes and counts, key for key."""

import math

import diffusers
import numpy as np
import pytest
import torch
import transformers

from spo_jax.core.trees import flatten
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.nn.shapes import text_shapes, vae_shapes
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPModel, CLIPTextModel
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig
from spo_jax.nn.lora import target_shapes
from spo_jax.nn.tiny_vae import AutoencoderTiny, TinyVAEConfig
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.nn.shapes import clip_shapes
from spo_jax.weights import rules


def _unet(config):
    return diffusers.UNet2DConditionModel.from_config(config), unet_shapes(
        UNet2DConditionModel(UNetConfig.from_dict(config))
    )


def _vae(config):
    return diffusers.AutoencoderKL.from_config(config), vae_shapes(AutoencoderKL(VAEConfig.from_dict(config)))


def _tiny_vae(config):
    theirs = {key: value for key, value in config.items() if key != "block_out_channels"}  # no argument of its class
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


# name: (both libraries' network, tensors, parameters in millions); the counts are those of the published files.
NETWORKS = {
    "SD15_UNET": (_unet, 686, 859.521),
    "SD21_UNET": (_unet, 686, 865.911),
    "SDXL_UNET": (_unet, 1680, 2567.464),
    "SD15_VAE": (_vae, 248, 83.654),
    "SDXL_VAE": (_vae, 248, 83.654),
    "TAESD": (_tiny_vae, 134, 2.445),
    "SD15_TEXT": (_text, 196, 123.060),
    "SDXL_TEXT_1": (_text, 196, 123.060),
    "SDXL_TEXT_2": (_projected_text, 517, 694.660),
    "CLIP_H": (_clip, 910, 986.109),
}
LORA_TARGETS = {"SD15_UNET": (128, 0.797), "SD21_UNET": (128, None), "SDXL_UNET": (560, 5.806)}  # the latter at rank 4


def _torch_shape(path, leaf):
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(leaf.shape)) if path.endswith("/kernel") else None
    return tuple(leaf.shape[axis] for axis in axes) if axes else tuple(leaf.shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_those_of_the_library(name):
    build, tensors, millions = NETWORKS[name]
    with torch.device("meta"):
        theirs, shapes = build(getattr(presets, name))
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    flat = flatten(shapes)
    ours = {rules.torch_key(path.split("/")): _torch_shape(path, leaf) for path, leaf in flat.items()}
    assert ours == expected
    assert len(flat) == len(ours) == tensors  # no two of our leaves have one name in torch
    assert round(sum(math.prod(leaf.shape) for leaf in flat.values()) / 1e6, 3) == millions
    # And the reader of files takes them all; the arrays hold one number each, however large they seem.
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in expected.items()}
    filled = rules.to_tree(state, shapes, name)
    assert {path: leaf.shape for path, leaf in flatten(filled).items()} == {
        path: leaf.shape for path, leaf in flat.items()
    }
    if name in LORA_TARGETS:
        _check_lora(target_shapes(shapes), *LORA_TARGETS[name], theirs)


def _check_lora(targets, count, millions, theirs):
    """The targets are the four projections of every Attention of the reference, whatever their names are."""
    attentions = {name for name, m in theirs.named_modules() if type(m).__name__ == "Attention"}
    expected = {f"{name}.{projection}" for name in attentions for projection in ("to_q", "to_k", "to_v", "to_out.0")}
    assert {rules.module_name(path.split("/")) for path in targets} == expected
    assert len(targets) == count
    if millions is not None:
        assert round(4 * sum(map(sum, targets.values())) / 1e6, 3) == millions


def test_presets_are_listed():
    """A preset without a line in NETWORKS would be unchecked."""
    public = {name for name, value in vars(presets).items() if isinstance(value, dict) and name.isupper()}
    assert {name for name in public if not name.startswith("_")} == NETWORKS.keys()
