"""The step-aware preference model as a reward."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.clip_score import score_images
from spo_jax.toy import ASSETS, world


@pytest.fixture(scope="module")
def reward():
    return load_reward("spm:toy", Context())


def test_the_score_is_the_models_at_timestep_0(reward):
    """There are more images than are scored at a time, and the last score does not depend on the others."""
    prompts = list(world.PROMPTS[:30])
    images, _ = world.draw(np.random.default_rng(0), prompts)
    scores = reward.measure(images, prompts)["spm_score"]
    assert scores.shape == (30,)
    assert reward.meanings == {"spm_score": "score of the preference model toy at timestep 0"}
    score = jax.jit(functools.partial(score_images, reward.model.clip))
    last = score(reward.params, images[-1:], jnp.zeros(1, jnp.int32), reward.features(prompts[-1:]))
    np.testing.assert_allclose(scores[-1:], last, rtol=1e-4, atol=1e-4)


def test_its_description_is_that_of_network_and_tokenizer(reward):
    model = reward.model
    assert reward.describe() == {"config": dataclasses.asdict(model.clip.config), "tokenizer": model.tokenizer.digest}


def test_a_variant_is_the_timestep_of_every_score(reward):
    """It holds for finished images, and for clean predictions from other timesteps."""
    prompts = list(world.PROMPTS[:2])
    images, _ = world.draw(np.random.default_rng(0), prompts)
    late = load_reward("spm@801:toy", Context())
    assert late.meanings == {"spm_score_801": "score of the preference model toy at timestep 801"}
    score = jax.jit(functools.partial(score_images, reward.model.clip))
    text = reward.features(prompts)
    expected = score(reward.params, images, jnp.full(2, 801), text)
    np.testing.assert_allclose(late.measure(images, prompts)["spm_score_801"], expected, rtol=1e-4, atol=1e-4)
    judged = jax.jit(late.score)(late.params, images, text, jnp.array([1, 401]))
    np.testing.assert_allclose(judged, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(reward.measure(images, prompts)["spm_score"] - expected).max() > 1e-2


@pytest.mark.parametrize("variant", ["1000", "-1", "1.5", "t", "", "01"])
def test_other_variants_than_timesteps_are_refused(variant):
    with pytest.raises(UserError, match=r"= 'spm@.*:toy': expected spm@T with a whole number T from 0 to 999"):
        load_reward(f"spm@{variant}:toy", Context())


def test_an_abstract_reward_has_the_shapes_of_the_loaded_one(reward):
    abstract = load_reward("spm:toy", Context(kind="sd", abstract=True))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), reward.params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract.params) == shapes
    assert abstract.feature_shapes() == reward.feature_shapes()
    features = reward.features(["a prompt"])
    assert (features.shape, features.dtype) == (reward.feature_shapes().shape, reward.feature_shapes().dtype)


def test_the_model_comes_from_the_options_or_the_source():
    """The source after a colon takes precedence."""
    folder = str(ASSETS / "spm")
    load_reward("spm", Context(options={"model": folder, "tokenizer": ""}))
    load_reward(f"spm:{folder}", Context(options={"model": "./no/such/model"}))
    with pytest.raises(UserError, match="no such file or folder: ./no/such/model"):
        load_reward("spm", Context(options={"model": "./no/such/model"}))
    with pytest.raises(UserError, match="eval.rewards = 'spm': name the preference model, as in spm:FOLDER_OR_ID"):
        load_reward("spm", Context())


def test_a_model_of_another_kind_is_refused(tmp_path):
    published = tmp_path / "sd-v1-5_step-aware_preference_model.bin"
    published.write_bytes(b"")
    with pytest.raises(UserError, match="trained on clean predictions of Stable Diffusion 1.x or 2.x, but .* is SDXL"):
        load_reward(f"spm:{published}", Context(kind="sdxl"))


def test_a_published_file_gets_its_tokenizer_from_the_hub(monkeypatch, reward):
    """It has none beside it, and ``spm:SOURCE`` has no field to name one."""
    from spo_jax.rewards.common import preference_model

    asked = []
    monkeypatch.setattr(preference_model, "load_spm", lambda *given, **how: asked.append(how["tokenizer"]))
    monkeypatch.setattr("spo_jax.rewards.common.spm_reward.SPMReward", lambda *given: reward)
    load_reward("spm:authors/models/sd-v1-5_step-aware_preference_model.bin", Context())
    load_reward("spm:runs/spm/spm", Context())
    load_reward("spm", Context(options={"model": "a.bin", "tokenizer": "mine"}))
    assert asked == ["laion/CLIP-ViT-H-14-laion2B-s32B-b79K", None, "mine"]


def test_features_of_images_make_the_score(toy):
    """The score is the scaled cosine of what `embed` and `features` return."""
    reward = load_reward("spm@401:toy", Context())
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    prompts = ["a red star", "a blue moon", "a red star"]
    features = reward.embed(images)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    scale = toy.spm.clip.apply({"params": toy.spm.params}, method="scale")
    cosines = (features * reward.features(prompts)).sum(1)
    np.testing.assert_allclose(reward.measure(images, prompts)["spm_score_401"], scale * cosines, rtol=1e-4, atol=1e-4)
    assert np.abs(features - load_reward("spm:toy", Context()).embed(images)).max() > 1e-3  # the timestep counts
