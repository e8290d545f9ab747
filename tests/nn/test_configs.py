"""Configs are read strictly: what is not implemented or not known raises, naming the file and the field."""

import dataclasses
import inspect
import json
import re

import diffusers
import pytest
import transformers

from spo_jax.core.errors import UserError
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.nn import clip_config
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from spo_jax.nn.tiny_vae import TinyVAEConfig
from spo_jax.nn.vae import VAEConfig

WHERE = "folder/config.json"
CLIP_H_TEXT, CLIP_H_VISION = clip_config.CLIP_H["text_config"], clip_config.CLIP_H["vision_config"]
READERS = {
    "unet": (UNetConfig, presets.SD15_UNET),
    "sdxl": (UNetConfig, presets.SDXL_UNET),
    "vae": (VAEConfig, presets.SD15_VAE),
    "tiny vae": (TinyVAEConfig, presets.TAESD),
    "text": (CLIPTextConfig, presets.SD15_TEXT),
    "vision": (CLIPVisionConfig, CLIP_H_VISION),
    "clip": (CLIPConfig, clip_config.CLIP_H),
}

UNSUPPORTED = [
    # Values of fields that are fixed.
    ("unet", "act_fn", "gelu"),
    ("unet", "mid_block_type", "UNetMidBlock2D"),
    ("unet", "mid_block_type", None),
    ("unet", "center_input_sample", True),
    ("unet", "only_cross_attention", True),
    ("unet", "only_cross_attention", [False, False, True, False]),
    ("unet", "downsample_padding", 0),
    ("unet", "mid_block_scale_factor", 2),
    ("unet", "dropout", 0.1),
    ("unet", "reverse_transformer_layers_per_block", [[1], [1], [1], [1]]),
    ("unet", "encoder_hid_dim", 64),
    ("unet", "encoder_hid_dim_type", "text_proj"),
    ("unet", "num_attention_heads", 8),
    ("unet", "dual_cross_attention", True),
    ("unet", "class_embed_type", "timestep"),
    ("unet", "num_class_embeds", 1000),
    ("unet", "resnet_time_scale_shift", "scale_shift"),
    ("unet", "resnet_skip_time_act", True),
    ("unet", "resnet_out_scale_factor", 1.4),
    ("unet", "time_embedding_type", "fourier"),
    ("unet", "time_embedding_dim", 512),
    ("unet", "time_embedding_act_fn", "silu"),
    ("unet", "timestep_post_act", "silu"),
    ("unet", "time_cond_proj_dim", 256),
    ("unet", "attention_type", "gated"),
    ("unet", "class_embeddings_concat", True),
    ("unet", "mid_block_only_cross_attention", True),
    ("unet", "cross_attention_norm", "layer_norm"),
    # Values that the types or the network do not allow.
    ("unet", "addition_embed_type", "text"),
    ("unet", "down_block_types", ["AttnDownBlock2D"] * 4),
    ("unet", "down_block_types", ["CrossAttnUpBlock2D"] * 4),
    ("unet", "down_block_types", ["DownBlock2D"] * 3),
    ("unet", "up_block_types", ["DownBlock2D"] * 4),
    ("unet", "up_block_types", ["UpBlock2D"] * 5),
    ("unet", "layers_per_block", [2, 2]),
    ("unet", "layers_per_block", 2.5),
    ("unet", "transformer_layers_per_block", [1, 1, 1]),
    ("unet", "transformer_layers_per_block", [[1, 1], 1, 1, 1]),
    ("unet", "attention_head_dim", [5, 10, 20]),
    ("unet", "attention_head_dim", 7),
    ("unet", "attention_head_dim", [8, 8, 8, 9]),  # The last level has no attention, the middle block has.
    ("unet", "norm_num_groups", None),
    ("unet", "norm_num_groups", 33),
    ("unet", "cross_attention_dim", [768, 768, 768, 768]),
    ("unet", "block_out_channels", []),
    ("unet", "in_channels", True),
    ("unet", "use_linear_projection", "yes"),
    ("sdxl", "addition_time_embed_dim", None),
    ("sdxl", "projection_class_embeddings_input_dim", None),
    ("vae", "act_fn", "relu"),
    ("vae", "shift_factor", 0.1),
    ("vae", "latents_mean", [0.0, 0.0, 0.0, 0.0]),
    ("vae", "latents_std", [1.0, 1.0, 1.0, 1.0]),
    ("vae", "down_block_types", ["AttnDownEncoderBlock2D"] * 4),
    ("vae", "down_block_types", ["DownEncoderBlock2D"] * 3),
    ("vae", "up_block_types", ["UpDecoderBlock2D"] * 5),
    ("vae", "up_block_types", ["UpBlock2D"] * 4),
    ("vae", "norm_num_groups", 48),
    ("vae", "layers_per_block", [2, 2, 2, 2]),
    ("tiny vae", "act_fn", "silu"),
    ("tiny vae", "upsample_fn", "bilinear"),
    ("tiny vae", "upsampling_scaling_factor", 4),
    ("tiny vae", "shift_factor", 0.5),
    ("tiny vae", "encoder_block_out_channels", [64, 64, 64]),
    ("tiny vae", "decoder_block_out_channels", [64, 64, 64, 32]),
    ("text", "hidden_act", "gelu_new"),
    ("text", "eos_token_id", [2, 3]),
    ("text", "eos_token_id", None),
    ("text", "projection_dim", None),
    ("text", "num_attention_heads", 11),
    ("text", "attention_dropout", 0.1),
    ("text", "dropout", 0.1),
    ("text", "pruned_heads", {"0": [1]}),
    ("vision", "hidden_act", "relu"),
    ("vision", "image_size", [224, 336]),
    ("vision", "patch_size", [14, 14]),
    ("vision", "num_attention_heads", 17),
    ("clip", "projection_dim", None),
    ("clip", "text_config", None),
    ("clip", "vision_config", "CLIP_H"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "field", "value"), UNSUPPORTED)
def test_unsupported_values_raise(kind, field, value):
    reader, good = READERS[kind]
    with pytest.raises(UserError, match=rf"^{re.escape(WHERE)}: .*{field}") as error:
        reader.from_dict(good | {field: value}, WHERE)
    assert "\n" not in str(error.value)


def test_every_fixed_field_is_tried():
    """A field that gets fixed gets a line above, so that it is known to be refused under its own name."""
    tried = {(READERS[kind][0], field) for kind, field, _ in UNSUPPORTED}
    fixed = {
        (reader, field) for reader in (UNetConfig, VAEConfig, TinyVAEConfig, CLIPTextConfig) for field in reader.FIXED
    }
    assert fixed <= tried


@pytest.mark.parametrize("kind", READERS)
def test_unknown_fields_raise(kind):
    reader, good = READERS[kind]
    with pytest.raises(UserError, match=rf"^{WHERE}: unknown field 'atention_bias'"):
        reader.from_dict(good | {"atention_bias": True}, WHERE)
    reader.from_dict(good | {"_diffusers_version": "0.1"}, WHERE)  # Notes of the library begin with an underscore.


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_errors_in_a_tower_name_it(tower):
    bad = clip_config.CLIP_H | {tower: clip_config.CLIP_H[tower] | {"hidden_act": "swish"}}
    with pytest.raises(UserError, match=rf"^{WHERE}: {tower}: hidden_act"):
        CLIPConfig.from_dict(bad, WHERE)
    del bad[tower]
    with pytest.raises(UserError, match=rf"^{WHERE}: field '{tower}' is missing"):
        CLIPConfig.from_dict(bad, WHERE)


def test_old_clip_configs_say_it_twice():
    """The dict that old files hold beside each tower's config wins, and what it leaves out has its default."""
    raw = {
        "text_config": dict(CLIP_H_TEXT),  # transformers writes into it
        "text_config_dict": {"hidden_size": 48, "num_attention_heads": 4},
        "vision_config": dict(CLIP_H_VISION),
        "vision_config_dict": None,
    }
    ours, theirs = CLIPConfig.from_dict(raw), transformers.CLIPConfig(**raw)
    for field in dataclasses.fields(CLIPTextConfig):
        assert getattr(ours.text, field.name) == getattr(theirs.text_config, field.name)
    assert ours.text.hidden_size == 48 and ours.text.num_hidden_layers == 12
    assert ours.vision.hidden_size == 1280
    with pytest.raises(UserError, match="config: text_config_dict: unknown field 'hiden_size'"):
        CLIPConfig.from_dict(raw | {"text_config_dict": {"hiden_size": 48}})


def _diffusers_defaults(model):
    parameters = inspect.signature(model.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


DEFAULTS = [
    (UNetConfig, lambda: _diffusers_defaults(diffusers.UNet2DConditionModel)),
    (VAEConfig, lambda: _diffusers_defaults(diffusers.AutoencoderKL)),
    (TinyVAEConfig, lambda: _diffusers_defaults(diffusers.AutoencoderTiny)),
    (CLIPTextConfig, lambda: transformers.CLIPTextConfig().to_dict()),
    (CLIPVisionConfig, lambda: transformers.CLIPVisionConfig().to_dict()),
]


@pytest.mark.parametrize(("reader", "defaults"), DEFAULTS)
def test_missing_fields_have_the_librarys_defaults(reader, defaults):
    """Old files leave out what their library did not know yet; every argument of today's library is known here."""
    raw = defaults()
    assert reader.from_dict({}) == reader.from_dict(raw)
    assert {field.name for field in dataclasses.fields(reader)} <= raw.keys()


def test_values_are_frozen_and_json_integers_are_floats():
    config = VAEConfig.from_dict(presets.SD15_VAE | {"scaling_factor": 1})
    assert config.block_out_channels == (128, 256, 512, 512)
    assert isinstance(config.scaling_factor, float) and hash(config) == hash(dataclasses.replace(config))
    assert config.downscale == 8


def test_configs_of_the_golden_models_are_read(golden_dir):
    files = sorted((golden_dir / "models").glob("**/config.json"))
    assert len(files) >= 8
    readers = {
        "UNet2DConditionModel": UNetConfig,
        "AutoencoderKL": VAEConfig,
        "CLIPTextModel": CLIPTextConfig,
        "CLIPTextModelWithProjection": CLIPTextConfig,
        "HFTimeConditionedCLIPModel": CLIPConfig,
    }
    for file in files:
        raw = json.loads(file.read_text())
        config = readers[raw.get("_class_name") or raw["architectures"][0]].from_dict(raw, str(file))
        for field in ("attention_head_dim", "block_out_channels", "hidden_size", "eos_token_id", "projection_dim"):
            if field in raw:
                value = getattr(config, field)
                assert (list(value) if isinstance(value, tuple) else value) == raw[field]
