"""Both parts of BLIP against those of transformers, to 1e-4 of the largest value, in float32 on both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.nn.blip import BLIP
from spo_jax.nn.blip_config import BertConfig, BLIPConfig, ViTConfig
from spo_jax.nn.shapes import blip_shapes
from spo_jax.weights import rules
from tests.nn.config_checks import (
    WHERE,
    check_fixed_fields_are_tried,
    check_unknown_field_is_refused,
    check_value_is_refused,
)
from tests.support.torch_blip import networks_of_transformers, salesforce_state

TOLERANCE = 1e-4
VISION = ViTConfig(image_size=14, patch_size=6, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.5, layer_norm_eps=1e-2)
TEXT = BertConfig(
    vocab_size=60,
    hidden_size=16,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=11,
    layer_norm_eps=1e-2,
)
IDS = jnp.array([[1, 2, 3, 40, 5, 0, 0], [7, 59, 8, 9, 4, 59, 6]])
VISIBLE = IDS != 0


def states_of(blip: BLIP, pixels: jax.Array):
    """A function of our weights that gives the image's tokens, all states of the text, and the first token."""

    def forward(params):
        bound = blip.bind({"params": params})
        image = bound.encode_image(pixels)
        return image, bound.text_encoder(IDS, VISIBLE, image), bound(IDS, VISIBLE, pixels)

    return forward


def test_both_parts_match_transformers(reference):
    config = BLIPConfig(VISION, TEXT)
    vision, text = map(reference.randomised, networks_of_transformers(config, 0.3))
    pixels = reference.normal(0, 2, 14, 14, 3)
    expected_image = vision(reference.nchw(pixels)).last_hidden_state
    expected = text(
        reference.to_torch(IDS).long(),
        attention_mask=reference.to_torch(VISIBLE).long(),
        encoder_hidden_states=expected_image,
        output_hidden_states=True,
        is_decoder=False,
    ).hidden_states

    ours = BLIP(config)
    arrays = {name: value.numpy() for name, value in salesforce_state(vision, text).items()}
    params = rules.to_tree(arrays, blip_shapes(ours), "torch", ignore=[r"position_ids$"])
    image, states, first = reference.jit(states_of(ours, pixels))(params)
    assert reference.relative_error(image, expected_image) < TOLERANCE
    assert len(states) == len(expected) == 3
    for state, target in zip(states, expected, strict=True):
        assert reference.relative_error(state, target) < TOLERANCE
    np.testing.assert_array_equal(first, states[-1][:, 0])


def test_what_is_padded_has_no_influence(reference):
    """Other tokens in the place of the padding change nothing at the places in front of it."""
    ours = BLIP(BLIPConfig(VISION, TEXT))
    pixels = reference.normal(0, 2, 14, 14, 3)
    params = jax.jit(ours.init)(jax.random.key(0), IDS, VISIBLE, pixels)
    first = reference.jit(ours.apply)
    expected = first(params, IDS, VISIBLE, pixels)
    other = IDS.at[0, 5:].set(33)
    np.testing.assert_allclose(first(params, other, VISIBLE, pixels), expected, rtol=1e-6)
    assert not np.allclose(first(params, other, other != 0, pixels)[0], expected[0], rtol=1e-3)


MED = {"hidden_act": "gelu", "add_cross_attention": True, "encoder_width": 768, "vocab_size": 30524}
UNSUPPORTED = [
    (BertConfig, MED, "hidden_act", "relu"),
    (BertConfig, MED, "add_cross_attention", False),
    (BertConfig, MED, "is_decoder", True),
    (BertConfig, MED, "position_embedding_type", "relative_key"),
    (BertConfig, MED, "num_attention_heads", 11),
    (BertConfig, MED, "num_hidden_layers", 10**9),
    (ViTConfig, {}, "num_heads", 17),
    (ViTConfig, {}, "patch_size", 448),
    (ViTConfig, {}, "depth", 2.5),
]


@pytest.mark.parametrize(("reader", "published", "field", "value"), UNSUPPORTED)
def test_unsupported_values_raise(reader, published, field, value):
    check_value_is_refused(reader, published, field, value)


@pytest.mark.parametrize(("reader", "published"), [(BertConfig, MED), (ViTConfig, {})])
def test_unknown_fields_raise(reader, published):
    check_unknown_field_is_refused(reader, published)
    check_fixed_fields_are_tried(reader, [field for kind, _, field, _ in UNSUPPORTED if kind is reader])


def test_the_sizes_of_the_published_files():
    """med_config.json of THUDM/ImageReward gives the text encoder, and the code of ImageReward the other sizes."""
    published = {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30524, "encoder_width": 768,
        "add_cross_attention": True,
    }  # fmt: skip
    assert BertConfig.from_dict(published, WHERE) == BLIPConfig().text
    shapes = blip_shapes(BLIP(BLIPConfig()))
    layer = shapes["text_encoder"]["encoder"]["layer_11"]
    assert layer["crossattention"]["self"]["key"]["kernel"].shape == (1024, 768)
    assert shapes["visual_encoder"]["pos_embed"].shape == (1, 197, 1024)
    with pytest.raises(UserError, match=f"^{WHERE}: vocab_size = 0: expected 1 to"):
        BertConfig.from_dict(published | {"vocab_size": 0}, WHERE)
