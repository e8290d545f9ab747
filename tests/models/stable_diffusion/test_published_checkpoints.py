"""Single files of the published sizes have the right kinds, names, shapes and configs; nothing is allocated."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as theirs

from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.config import UNetConfig, per_block
from spo_jax.models.stable_diffusion.single_file import read_single_file, write_single_file
from spo_jax.nn import clip_config
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.vae import VAEConfig
from spo_jax.weights import store
from tests.models.stable_diffusion.published import UNETS, published_unet


def _meta(kind: str) -> dict[str, dict[str, np.ndarray]]:
    """Returns the states of the published networks in diffusers and transformers, with one number for all weights."""
    vae = presets.SDXL_VAE if kind == "sdxl" else presets.SD15_VAE
    texts = {"text_encoder": presets.SD15_TEXT}
    if kind == "sd21":
        texts["text_encoder"] = clip_config.CLIP_H["text_config"] | {"num_hidden_layers": 23}
    with torch.device("meta"):
        parts = {"unet": published_unet(kind), "vae": diffusers.AutoencoderKL.from_config(vae)}
        for name, config in texts.items():
            parts[name] = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
        if kind == "sdxl":
            config = transformers.CLIPTextConfig(**presets.SDXL_TEXT_2)
            parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(config)
    number = np.zeros((), np.int8)
    return {
        name: {
            key if key.startswith("text_projection") or not name.startswith("text") else (
                f"text_model.{key.removeprefix('text_model.')}"
            ): np.broadcast_to(number, tuple(value.shape))
            for key, value in part.state_dict().items()
        }
        for name, part in parts.items()
    }  # fmt: skip


def _normal(config: UNetConfig) -> UNetConfig:
    """Writes out one value per block in the fields that may have a single one."""
    blocks = len(config.block_out_channels)
    fields = ("layers_per_block", "transformer_layers_per_block", "attention_head_dim")
    return dataclasses.replace(
        config,
        upcast_attention=bool(config.upcast_attention),
        **{field: per_block(getattr(config, field), blocks) for field in fields},
    )


@pytest.mark.parametrize(("kind", "inferred"), [("sd15", "v1"), ("sd21", "v2"), ("sdxl", "xl_base")])
def test_published_sizes(kind: str, inferred: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of these sizes is written: all weights are views of one number."""
    components = _meta(kind)
    written = {}
    monkeypatch.setattr(store, "write_state", lambda path, state: written.update(state))
    write_single_file("x.safetensors", kind, components)
    shapes = {key: torch.empty(array.shape, device="meta") for key, array in written.items()}
    assert theirs.infer_diffusers_model_type(shapes) == inferred
    monkeypatch.setattr(store, "read_file", lambda path: written)
    read = read_single_file("x.safetensors")
    assert read.kind == kind
    for name, state in components.items():
        ours = {key: array.shape for key, array in read.components[name].items()}
        assert ours == {key: array.shape for key, array in state.items()}
    assert len(read.components["unet"]) == (1680 if kind == "sdxl" else 686)
    preset = UNETS[kind]
    unet = UNetConfig.from_dict(read.configs["unet"])
    heads = (5, 5, 10, 20)[1:] if kind == "sdxl" else unet.attention_head_dim
    assert heads == unet.attention_head_dim
    assert _normal(unet) == _normal(UNetConfig.from_dict(preset))
    vae = VAEConfig.from_dict(read.configs["vae"])
    expected = VAEConfig.from_dict(presets.SDXL_VAE if kind == "sdxl" else presets.SD15_VAE)
    assert vae == dataclasses.replace(expected, sample_size=vae.sample_size, force_upcast=kind == "sdxl")
    texts = {"text_encoder": presets.SD15_TEXT, "text_encoder_2": presets.SDXL_TEXT_2}
    if kind == "sd21":
        texts["text_encoder"] = clip_config.CLIP_H["text_config"] | {"num_hidden_layers": 23}
    for name in components.keys() & texts.keys():
        assert CLIPTextConfig.from_dict(read.configs[name]) == CLIPTextConfig.from_dict(texts[name])
