"""ImageReward: token ids, pixels, features and scores as the original computes them on small random weights.

Ids, masks, bytes and ranks are equal. Features differ by 1e-5 of the largest value, which is the rounding of float32
sums in another order; the score adds the folded head, whose original adds 1,024 products in float32: 1e-4 relative.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from spo_jax.core.resizing import center_crop, resize_pillow, shorter_side_size_cut
from spo_jax.core.rows import take_rows
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.affine_head import apply_head
from spo_jax.rewards.common.clip_pixels import openai_pixels
from spo_jax.rewards.common.clip_score import normalise
from spo_jax.rewards.common.image_reward import MEAN, STD

FEATURES, SCORES = 1e-5, 1e-4


@pytest.fixture(scope="module")
def case(golden, reward_inputs):
    """The reward, its arrays, and the images [1 h w 3] and prompts that they are of."""
    return SimpleNamespace(
        reward=load_reward(f"image_reward:{reward_inputs.needs('imagereward')}", Context()),
        arrays=golden.arrays("rewards/imagereward/golden.npz"),
        images=[reward_inputs.image(name) for name in reward_inputs.names],
        rgba=reward_inputs.rgba,
        prompts=reward_inputs.prompts,
        texts=reward_inputs.prompts + reward_inputs.token_only,
    )


def test_token_ids(case):
    tokens = case.reward.features(case.texts)
    np.testing.assert_array_equal(tokens["ids"], case.arrays["input_ids"])
    np.testing.assert_array_equal(tokens["mask"], case.arrays["attention_mask"])


def test_pixels(case, golden):
    side = case.reward.blip.config.vision.image_size
    pixels = jax.jit(openai_pixels, static_argnums=1)
    ours = np.concatenate([pixels(jnp.asarray(image), side) for image in case.images])
    np.testing.assert_allclose(ours, golden.nhwc(case.arrays["pixel_values"]), atol=1e-6)


def test_pixels_of_an_image_with_alpha(case, golden):
    """The original resizes colours that are multiplied by alpha; what Pillow does around the resize, it does here."""
    side = case.reward.blip.config.vision.image_size
    multiplied = np.asarray(Image.fromarray(case.rgba).convert("RGBa"))
    resized = resize_pillow(jnp.asarray(multiplied)[None], shorter_side_size_cut(*multiplied.shape[:2], side))
    divided = Image.frombytes("RGBa", resized.shape[2:0:-1], np.asarray(resized).tobytes()).convert("RGBA")
    colours = center_crop(jnp.asarray(divided.convert("RGB"))[None], side)
    ours = normalise(colours.astype(jnp.float32) / 255)
    np.testing.assert_allclose(ours[0], golden.nhwc(case.arrays["pixel_values_rgba"]), atol=1e-6)


def test_features_of_images(case, golden):
    """The patches of the first image, and all tokens of each."""
    blip = case.reward.blip
    pixels = golden.nhwc(case.arrays["pixel_values"])

    def encode(params, pixels):
        _, state = blip.apply({"params": params}, pixels, method="encode_image", capture_intermediates=True)
        seen = state["intermediates"]["visual_encoder"]
        return seen["patch_embed"]["__call__"][0], seen["__call__"][0]

    patches, tokens = jax.jit(encode)(case.reward.params["blip"], pixels)
    assert golden.relative_error(patches[:1], case.arrays["vit_patch_embed_img0"]) < FEATURES
    assert golden.relative_error(tokens, case.arrays["image_embeds"]) < FEATURES
    classes = case.arrays["image_embeds"][:, 0]
    unit = case.reward.embed(case.images[0])
    np.testing.assert_allclose(unit, classes[:1] / np.linalg.norm(classes[:1]), atol=FEATURES)


def test_features_of_texts(case, golden):
    """Every state of the first text with the first image, and the first token of every text with every image."""
    blip = case.reward.blip
    images = jnp.asarray(case.arrays["image_embeds"])

    def encode(params, tokens, images):
        rows = jax.tree.map(lambda x: jnp.repeat(x, len(images), axis=0), tokens)
        return blip.bind({"params": params}).text_encoder(rows["ids"], rows["mask"], images)

    encode = jax.jit(encode)
    tokens = case.reward.features(case.prompts)
    states = [
        encode(case.reward.params["blip"], take_rows(tokens, np.array([i])), images) for i in range(len(case.prompts))
    ]
    layers = len(states[0])
    assert layers == sum(name.startswith("bert_hidden") for name in case.arrays)
    for layer, state in enumerate(states[0]):
        assert golden.relative_error(state[:1], case.arrays[f"bert_hidden{layer}_p0_i0"]) < FEATURES
    first = np.stack([state[-1][:, 0] for state in states])
    assert golden.relative_error(first, case.arrays["text_cls"]) < FEATURES


def test_scores_and_ranks(case, golden):
    """The head on the original's first tokens, for every prompt and image."""
    raw = np.stack([apply_head(case.reward.params["head"], jnp.asarray(row)) for row in case.arrays["text_cls"]])
    assert golden.relative_error(raw, case.arrays["mlp_raw"]) < SCORES
    assert (float(case.arrays["mean"]), float(case.arrays["std"])) == (MEAN, STD)
    scores = (raw - MEAN) / STD
    assert golden.relative_error(scores, case.arrays["rewards"]) < SCORES
    np.testing.assert_array_equal(1 + np.argsort(np.argsort(-scores, axis=1), axis=1), case.arrays["ranks"])


@pytest.mark.parametrize("which", [0, 1, -1])
def test_scores_of_images_and_prompts_as_a_user_has_them(case, which):
    images = np.repeat(case.images[which], len(case.prompts), axis=0)
    expected = case.arrays["rewards"]
    scores = case.reward.measure(images, case.prompts)["image_reward"]
    np.testing.assert_allclose(scores, expected[:, which], atol=SCORES * np.abs(expected).max())
