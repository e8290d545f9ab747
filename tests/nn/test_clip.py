"""The two towers of CLIP against those of transformers, to 1e-4 of the largest value, in float32 on both sides.

The time-conditioned tower has no counterpart in transformers; the golden arrays compare it with the SPO authors' code.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.activations import ACT2FN

from spo_jax.core.trees import flatten
from spo_jax.nn.clip import CLIPModel, CLIPTextModel, CLIPVisionTransformer, activation
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig
from spo_jax.nn.shapes import clip_shapes, text_shapes

TOLERANCE = 1e-4

TEXT = dict(
    vocab_size=60,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=11,
    initializer_factor=5.0,
)
VISION = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=14,
    patch_size=6,
    initializer_factor=5.0,
    layer_norm_eps=1.0,
)
END = 40
# The end token comes twice, with a token of larger id before it, so the two rules of pooling choose differently.
IDS = jnp.array([[1, 2, 3, END, 5, END, END], [7, 59, 8, 9, END, 59, 0]])


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_activations_match_transformers(reference, name):
    x = jnp.linspace(-6, 6, 101)
    assert reference.relative_error(activation(name)(x), ACT2FN[name](reference.to_torch(x))) < 1e-6


@pytest.mark.parametrize("eos_token_id", [2, END])
@pytest.mark.parametrize(("hidden_act", "projection"), [("quick_gelu", False), ("gelu", True)])
def test_text_tower_matches_transformers(reference, hidden_act, eos_token_id, projection):
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        **TEXT, hidden_act=hidden_act, eos_token_id=eos_token_id, projection_dim=10, layer_norm_eps=1e-3
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    theirs = reference.randomised(kind(config))
    ours = CLIPTextModel(CLIPTextConfig.from_dict(config.to_dict()), projection)
    params = reference.tree(theirs, text_shapes(ours), prefix="" if projection else "text_model.")
    out, embeds = reference.jit(ours.apply)({"params": params}, IDS)

    expected = theirs(reference.to_torch(IDS).long(), output_hidden_states=True)
    assert reference.relative_error(out.last, expected.last_hidden_state) < TOLERANCE
    assert reference.relative_error(out.penultimate, expected.hidden_states[-2]) < TOLERANCE
    positions = {2: [3, 1], END: [3, 4]}[eos_token_id]
    np.testing.assert_array_equal(out.pooled, np.asarray(out.last)[[0, 1], positions])
    if projection:
        assert reference.relative_error(embeds, expected.text_embeds) < TOLERANCE
    else:
        assert embeds is None
        assert reference.relative_error(out.pooled, expected.pooler_output) < TOLERANCE


@pytest.fixture(scope="module")
def clip(reference):
    """(theirs, ours, our parameters) of a CLIPModel with a different activation in each tower."""
    torch.manual_seed(0)
    text = TEXT | dict(hidden_act="gelu", eos_token_id=2)
    vision = VISION | dict(hidden_act="quick_gelu")
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)
    theirs = reference.randomised(transformers.CLIPModel(config))
    ours = CLIPModel(CLIPConfig.from_dict(config.to_dict()))
    return theirs, ours, jax.device_put(reference.tree(theirs, clip_shapes(ours)))


def test_both_towers_match_transformers(clip, reference):
    theirs, ours, params = clip
    pixels = reference.normal(0, 2, 14, 14, 3)

    def forward(params):
        bound = ours.bind({"params": params})
        vision = bound.vision_model(pixels)
        return vision, bound.encode_text(IDS), bound.encode_image(pixels), bound(IDS, pixels), bound.scale()

    vision, text_embeds, image_embeds, scores, scale = reference.jit(forward)(params)
    ids = reference.to_torch(IDS).long()
    images = reference.nchw(pixels)
    tower = theirs.vision_model(images, output_hidden_states=True)
    assert reference.relative_error(vision.last, tower.last_hidden_state) < TOLERANCE
    assert reference.relative_error(vision.penultimate, tower.hidden_states[-2]) < TOLERANCE
    assert reference.relative_error(vision.pooled, tower.pooler_output) < TOLERANCE
    assert reference.relative_error(text_embeds, theirs.get_text_features(ids).pooler_output) < TOLERANCE
    assert reference.relative_error(image_embeds, theirs.get_image_features(images).pooler_output) < TOLERANCE
    expected = theirs(input_ids=ids, pixel_values=images)
    assert reference.relative_error(scores, expected.logits_per_image.diagonal()) < TOLERANCE
    assert reference.relative_error(scale, theirs.logit_scale.exp()) < TOLERANCE


def test_remat_changes_nothing(clip, reference):
    """Recomputing the layers of a tower, here only the first, gives the same states and the same gradients."""
    _, ours, params = clip
    pixels = reference.normal(0, 2, 14, 14, 3)
    config = dataclasses.replace(ours.config.vision, num_hidden_layers=1)

    def run(remat):
        module = CLIPVisionTransformer(config, remat)

        def loss(params):
            return jnp.sum(jnp.sin(module.apply({"params": params}, pixels).pooled))

        assert reference.remat_blocks(loss, params["vision_model"]) == (1 if remat else 0)
        value, gradients = reference.jit(jax.value_and_grad(loss))(params["vision_model"])
        return value, flatten(gradients)

    value, gradients = run(False)
    remat_value, remat_gradients = run(True)
    assert reference.relative_error(remat_value, value) < 1e-6
    largest = max(float(jnp.abs(leaf).max()) for leaf in gradients.values())
    errors = [float(jnp.abs(leaf - remat_gradients[path]).max()) for path, leaf in gradients.items()]
    assert max(errors) < 1e-5 * largest


@pytest.mark.parametrize("time_conditioned", [False, True])
def test_timesteps_are_required_if_and_only_if_time_conditioned(clip, time_conditioned):
    _, ours, _ = clip
    module = CLIPModel(CLIPConfig(ours.config.text, ours.config.vision, 10, time_conditioned))
    pixels = jnp.zeros((1, 14, 14, 3))
    t = () if time_conditioned else (jnp.zeros(1),)
    with pytest.raises(ValueError, match=f"config.time_conditioned={time_conditioned}: give t if and only if"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), IDS[:1], pixels, *t))
