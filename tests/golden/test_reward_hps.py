"""HPS v2 and v2.1: token ids, pixels, features and scores as the original computes them on small random weights.

Pixels differ by up to 1e-4 where tensors are resized, because torch computes the places of pixels in float32; those of
Pillow are equal.
Features are compared from the original's pixels, 1e-5 of the largest value, and from images as the score is, 1e-4.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.clip_score import unit_norm
from spo_jax.rewards.common.hps import PIXELS

FEATURES, SCORES, PIXEL = 1e-5, 1e-4, 1e-4
MODES = {"antialias": "antialias_true", "no_antialias": "antialias_false", "pil": "pil"}
REWARDS = {"hpsv2": "v2", "hpsv21": "v21"}


@pytest.fixture(scope="module")
def case(golden, reward_inputs):
    """The arrays, and the images [1 h w 3] and prompts that they are of."""
    return SimpleNamespace(
        folder=reward_inputs.needs("hpsv2"),
        arrays=golden.arrays("rewards/hpsv2/golden.npz"),
        images=[reward_inputs.image(name) for name in reward_inputs.names],
        with_alpha=reward_inputs.image("rgba"),
        prompts=reward_inputs.prompts,
    )


@pytest.fixture(scope="module")
def rewards(case):
    return {name: load_reward(f"{name}:{case.folder}", Context()) for name in REWARDS}


@pytest.fixture(scope="module")
def pixels(case):
    """The network's input in every mode."""
    side = case.arrays["pixels_pil"].shape[-1]
    modes = {mode: jax.jit(PIXELS[mode], static_argnums=1) for mode in MODES}
    return {
        mode: jnp.concatenate([function(jnp.asarray(image), side) for image in case.images])
        for mode, function in modes.items()
    }


def test_token_ids(case, rewards):
    for reward in rewards.values():
        np.testing.assert_array_equal(reward.tokenize(case.prompts), case.arrays["input_ids"])


@pytest.mark.parametrize("mode", MODES)
def test_pixels(case, golden, pixels, mode):
    theirs = golden.nhwc(case.arrays[f"pixels_{MODES[mode]}"])
    np.testing.assert_allclose(pixels[mode], theirs, atol=1e-6 if mode == "pil" else PIXEL)


@pytest.mark.parametrize("mode", ["antialias", "no_antialias"])
def test_alpha_does_not_change_colours_that_are_resized_as_tensors(case, golden, mode):
    """The original keeps alpha, which its network then refuses; here it is dropped."""
    theirs = golden.nhwc(case.arrays[f"pixels_rgba_{MODES[mode]}"])
    (ours,) = jax.jit(PIXELS[mode], static_argnums=1)(jnp.asarray(case.with_alpha), theirs.shape[0])
    np.testing.assert_allclose(ours, theirs[..., :3], atol=PIXEL)


@pytest.mark.parametrize("name", REWARDS)
def test_text_features_and_scale(case, golden, rewards, name):
    reward = rewards[name]
    arrays = {key.removeprefix(f"{REWARDS[name]}_"): value for key, value in case.arrays.items()}
    ids = jnp.asarray(case.arrays["input_ids"])
    features = reward.clip.apply({"params": reward.params}, ids, method="encode_text")
    assert golden.relative_error(features, arrays["text_features"]) < FEATURES
    assert golden.relative_error(reward.features(case.prompts), arrays["text_features_normed"]) < FEATURES
    np.testing.assert_allclose(reward.params["logit_scale"], arrays["logit_scale"], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REWARDS)
def test_image_features_of_the_originals_pixels(case, golden, rewards, name, mode):
    reward = rewards[name]
    pixels = golden.nhwc(case.arrays[f"pixels_{MODES[mode]}"])
    features = reward.clip.apply({"params": reward.params}, pixels, method="encode_image")
    arrays = {kind: case.arrays[f"{REWARDS[name]}_image_features_{kind}{MODES[mode]}"] for kind in ("", "normed_")}
    assert golden.relative_error(features, arrays[""]) < FEATURES
    assert golden.relative_error(unit_norm(features), arrays["normed_"]) < FEATURES


def test_tokens_of_the_first_image_before_the_last_norm(case, golden, rewards):
    reward = rewards["hpsv2"]
    pixels = golden.nhwc(case.arrays["pixels_antialias_true"][:1])
    tokens = reward.clip.apply({"params": reward.params}, pixels, method=lambda clip, x: clip.vision_model(x).last)
    assert golden.relative_error(tokens, case.arrays["v2_visual_tokens_img0_antialias_true"]) < FEATURES


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REWARDS)
def test_scores_of_all_images(case, golden, rewards, pixels, name, mode):
    reward = rewards[name]
    features = unit_norm(reward.clip.apply({"params": reward.params}, pixels[mode], method="encode_image"))
    theirs = case.arrays[f"{REWARDS[name]}_image_features_normed_{MODES[mode]}"]
    assert golden.relative_error(features, theirs) < SCORES
    cosines = reward.features(case.prompts) @ np.asarray(features).T
    np.testing.assert_allclose(cosines, case.arrays[f"{REWARDS[name]}_scores_{MODES[mode]}"], atol=SCORES)


@pytest.mark.parametrize("mode", MODES)
def test_the_score_is_100_times_the_originals(case, golden, mode):
    """From a file, an image and prompts to the score; the default is the antialiased one."""
    reward = load_reward(f"hpsv21@{mode}:{case.folder}", Context())
    scores = reward.measure(case.images[0].repeat(len(case.prompts), 0), case.prompts)[f"hpsv21_{mode}"]
    np.testing.assert_allclose(scores / 100, case.arrays[f"v21_scores_{MODES[mode]}"][:, 0], atol=SCORES)
    theirs = case.arrays[f"v21_image_features_normed_{MODES[mode]}"][:1]
    assert golden.relative_error(reward.embed(case.images[0]), theirs) < SCORES


@pytest.mark.parametrize("name", REWARDS)
def test_the_default_is_antialiased(case, rewards, name):
    scores = rewards[name].measure(case.images[0].repeat(len(case.prompts), 0), case.prompts)[name]
    np.testing.assert_allclose(scores / 100, case.arrays[f"{REWARDS[name]}_scores_antialias_true"][:, 0], atol=SCORES)
