"""Configs of CLIP are read strictly: an unknown field or an unsupported value raises and names file and field."""

import dataclasses

import pytest
import transformers

from spo_jax.core.errors import UserError
from spo_jax.nn import clip_config
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from tests.nn.config_checks import (
    WHERE,
    check_defaults,
    check_fixed_fields_are_tried,
    check_unknown_field_is_refused,
    check_value_is_refused,
)

CLIP_H_TEXT = clip_config.CLIP_H["text_config"]
CLIP_H_VISION = clip_config.CLIP_H["vision_config"]
# Kind -> reader and a published config.
READERS = {
    "text": (CLIPTextConfig, clip_config.CLIP_L_TEXT),
    "vision": (CLIPVisionConfig, CLIP_H_VISION),
    "clip": (CLIPConfig, clip_config.CLIP_H),
}
UNSUPPORTED = [
    # Values of fields that are fixed.
    ("text", "attention_dropout", 0.1),
    ("text", "dropout", 0.1),
    ("text", "pruned_heads", {"0": [1]}),
    # Values that the types or the network do not allow.
    ("text", "hidden_act", "gelu_new"),
    ("text", "eos_token_id", [2, 3]),
    ("text", "eos_token_id", None),
    ("text", "projection_dim", None),
    ("text", "num_attention_heads", 11),
    ("text", "num_hidden_layers", 10**12),
    ("text", "hidden_size", -64),
    ("text", "layer_norm_eps", float("nan")),
    ("text", "eos_token_id", -1),
    ("vision", "patch_size", 448),
    ("clip", "projection_dim", 10**9),
    ("vision", "hidden_act", "relu"),
    ("vision", "image_size", [224, 336]),
    ("vision", "patch_size", [14, 14]),
    ("vision", "num_attention_heads", 17),
    ("clip", "projection_dim", None),
    ("clip", "text_config", None),
    ("clip", "vision_config", "CLIP_H"),
]


@pytest.mark.parametrize(("kind", "field", "value"), UNSUPPORTED)
def test_unsupported_values_raise(kind, field, value):
    check_value_is_refused(*READERS[kind], field, value)


def test_every_fixed_field_is_tried():
    check_fixed_fields_are_tried(CLIPTextConfig, [field for kind, field, _ in UNSUPPORTED if kind == "text"])


@pytest.mark.parametrize("kind", READERS)
def test_unknown_fields_raise(kind):
    check_unknown_field_is_refused(*READERS[kind])


@pytest.mark.parametrize(
    ("reader", "library"),
    [(CLIPTextConfig, transformers.CLIPTextConfig), (CLIPVisionConfig, transformers.CLIPVisionConfig)],
)
def test_missing_fields_have_the_defaults_of_transformers(reader, library):
    check_defaults(reader, library().to_dict())


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_errors_in_a_tower_name_it(tower):
    bad = clip_config.CLIP_H | {tower: clip_config.CLIP_H[tower] | {"hidden_act": "swish"}}
    with pytest.raises(UserError, match=rf"^{WHERE}: {tower}: hidden_act"):
        CLIPConfig.from_dict(bad, WHERE)
    del bad[tower]
    with pytest.raises(UserError, match=rf"^{WHERE}: {tower} is missing: expected the config of a CLIPModel$"):
        CLIPConfig.from_dict(bad, WHERE)


def test_the_second_dict_of_old_clip_configs_takes_precedence():
    """Old files hold a second dict beside the config of a tower; a field that it leaves out has its default."""
    raw = {
        "text_config": dict(CLIP_H_TEXT),  # a copy, because transformers writes into it
        "text_config_dict": {"hidden_size": 48, "num_attention_heads": 4},
        "vision_config": dict(CLIP_H_VISION),
        "vision_config_dict": None,
    }
    ours = CLIPConfig.from_dict(raw)
    theirs = transformers.CLIPConfig(**raw)
    for field in dataclasses.fields(CLIPTextConfig):
        assert getattr(ours.text, field.name) == getattr(theirs.text_config, field.name)
    assert ours.text.hidden_size == 48 and ours.text.num_hidden_layers == 12
    assert ours.vision.hidden_size == 1280
    message = r"^config: text_config_dict: hiden_size is not a field of CLIPTextConfig: did you mean hidden_size\?$"
    with pytest.raises(UserError, match=message):
        CLIPConfig.from_dict(raw | {"text_config_dict": {"hiden_size": 48}})
