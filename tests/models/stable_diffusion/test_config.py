"""Configs of UNets are read strictly: an unknown field or an unsupported value raises an error with file and field."""

import dataclasses
import json
from typing import get_args

import diffusers
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.nn.clip_config import CLIP_H, CLIP_L_TEXT, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from spo_jax.nn.tiny_vae import TAESD, TinyVAEConfig
from spo_jax.nn.vae import VAEConfig
from tests.nn.config_checks import (
    check_defaults,
    check_fixed_fields_are_tried,
    check_unknown_field_is_refused,
    check_value_is_refused,
    diffusers_defaults,
)
from tests.support import fuzzing

PUBLISHED = {"sd15": presets.SD15_UNET, "sdxl": presets.SDXL_UNET}
UNSUPPORTED = [
    # Values of fields that are fixed.
    ("sd15", "act_fn", "gelu"),
    ("sd15", "mid_block_type", "UNetMidBlock2D"),
    ("sd15", "mid_block_type", None),
    ("sd15", "center_input_sample", True),
    ("sd15", "only_cross_attention", True),
    ("sd15", "only_cross_attention", [False, False, True, False]),
    ("sd15", "downsample_padding", 0),
    ("sd15", "mid_block_scale_factor", 2),
    ("sd15", "dropout", 0.1),
    ("sd15", "reverse_transformer_layers_per_block", [[1], [1], [1], [1]]),
    ("sd15", "encoder_hid_dim", 64),
    ("sd15", "encoder_hid_dim_type", "text_proj"),
    ("sd15", "num_attention_heads", 8),
    ("sd15", "dual_cross_attention", True),
    ("sd15", "class_embed_type", "timestep"),
    ("sd15", "num_class_embeds", 1000),
    ("sd15", "resnet_time_scale_shift", "scale_shift"),
    ("sd15", "resnet_skip_time_act", True),
    ("sd15", "resnet_out_scale_factor", 1.4),
    ("sd15", "time_embedding_type", "fourier"),
    ("sd15", "time_embedding_dim", 512),
    ("sd15", "time_embedding_act_fn", "silu"),
    ("sd15", "timestep_post_act", "silu"),
    ("sd15", "time_cond_proj_dim", 256),
    ("sd15", "attention_type", "gated"),
    ("sd15", "class_embeddings_concat", True),
    ("sd15", "mid_block_only_cross_attention", True),
    ("sd15", "cross_attention_norm", "layer_norm"),
    # Values that the types or the network do not allow.
    ("sd15", "addition_embed_type", "text"),
    ("sd15", "down_block_types", ["AttnDownBlock2D"] * 4),
    ("sd15", "down_block_types", ["CrossAttnUpBlock2D"] * 4),
    ("sd15", "down_block_types", ["DownBlock2D"] * 3),
    ("sd15", "up_block_types", ["DownBlock2D"] * 4),
    ("sd15", "up_block_types", ["UpBlock2D"] * 5),
    ("sd15", "layers_per_block", [2, 2]),
    ("sd15", "layers_per_block", 2.5),
    ("sd15", "transformer_layers_per_block", [1, 1, 1]),
    ("sd15", "transformer_layers_per_block", [[1, 1], 1, 1, 1]),
    ("sd15", "attention_head_dim", [5, 10, 20]),
    ("sd15", "attention_head_dim", 7),
    ("sd15", "attention_head_dim", [8, 8, 8, 9]),  # The last level has no attention, but the middle block has one.
    ("sd15", "norm_num_groups", None),
    ("sd15", "norm_num_groups", 33),
    ("sd15", "cross_attention_dim", [768, 768, 768, 768]),
    ("sd15", "block_out_channels", []),
    ("sd15", "in_channels", True),
    ("sd15", "use_linear_projection", "yes"),
    ("sd15", "block_out_channels", [320] * 9),
    ("sd15", "sample_size", 10**6),
    ("sd15", "in_channels", 0),
    ("sd15", "layers_per_block", 10**12),
    ("sd15", "transformer_layers_per_block", 64),
    ("sd15", "norm_eps", float("nan")),
    ("sdxl", "addition_time_embed_dim", None),
    ("sdxl", "projection_class_embeddings_input_dim", None),
]


@pytest.mark.parametrize(("kind", "field", "value"), UNSUPPORTED)
def test_unsupported_values_raise(kind, field, value):
    check_value_is_refused(UNetConfig, PUBLISHED[kind], field, value)


def test_the_number_of_entries_is_that_of_block_out_channels():
    raw = presets.SD15_UNET | {"layers_per_block": [2, 2]}
    with pytest.raises(UserError, match="x.json: layers_per_block has 2 entries: expected 4 as in block_out_channels"):
        UNetConfig.from_dict(raw, "x.json")


def test_every_fixed_field_is_tried():
    check_fixed_fields_are_tried(UNetConfig, [field for _, field, _ in UNSUPPORTED])


@pytest.mark.parametrize("kind", PUBLISHED)
def test_unknown_fields_raise(kind):
    check_unknown_field_is_refused(UNetConfig, PUBLISHED[kind])


def test_missing_fields_have_the_defaults_of_diffusers():
    check_defaults(UNetConfig, diffusers_defaults(diffusers.UNet2DConditionModel))


def test_configs_of_the_golden_models_are_read(golden_dir):
    """Every config of the golden models has a reader, for their autoencoders and text encoders too."""
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


# Kind -> reader and a published config.
READERS = {
    "unet": (UNetConfig, presets.SDXL_UNET),
    "vae": (VAEConfig, presets.SD15_VAE),
    "tiny_vae": (TinyVAEConfig, TAESD),
    "text": (CLIPTextConfig, CLIP_L_TEXT),
    "vision": (CLIPVisionConfig, CLIP_H["vision_config"]),
    "clip": (CLIPConfig, CLIP_H),
    "schedule": (ScheduleConfig, presets.SCHEDULER),
}


@pytest.mark.parametrize("kind", READERS)
def test_every_number_has_a_range(kind):
    """A network of 10**12 layers, or of -1, would end the program instead of the command."""
    for field in dataclasses.fields(READERS[kind][0]):
        numbers = {int, float} & {
            field.type,
            *(item for part in get_args(field.type) for item in (part, *get_args(part))),
        }
        bounds = field.metadata.get("bounds", {}).keys()
        assert not numbers or (bounds & {"at_least", "above"} and bounds & {"at_most", "below"}), field.name


@pytest.mark.parametrize("kind", READERS)
def test_configs_damaged_at_random_are_read_or_refused(kind, tmp_path):
    """Whatever the values are: no other error, and no memory or time beyond what the file explains."""
    reader, published = READERS[kind]
    file = tmp_path / "config.json"
    for case in fuzzing.cases(30):
        file.write_bytes(fuzzing.damaged_json(case, published).encode("utf-8", "surrogatepass"))
        fuzzing.read_or_refused(case, lambda: reader.from_dict(read_json_object(file), str(file)))
