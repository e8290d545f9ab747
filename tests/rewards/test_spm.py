"""The step-aware preference model as a reward."""

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
    return load_reward("spm", Context())


@pytest.fixture(scope="module")
def scores(reward, drawn):
    images, prompts = drawn
    return reward.measure(images, prompts)["spm_score"]


@pytest.fixture(scope="module")
def drawn():
    """More images than are scored at a time, with their prompts."""
    prompts = list(world.PROMPTS[:30])
    images, _ = world.draw(np.random.default_rng(0), prompts)
    return images, prompts


def test_the_score_is_the_models_at_timestep_0(reward, drawn, scores):
    """It does not depend on the other images of the batch either."""
    images, prompts = drawn
    assert scores.shape == (30,)
    clip = reward.model.clip
    last = jax.jit(lambda *arguments: score_images(clip, *arguments))(
        reward.params, images[-1:], jnp.zeros(1, jnp.int32), reward.features(prompts[-1:])
    )
    np.testing.assert_allclose(scores[-1:], last, rtol=1e-4, atol=1e-4)


def test_the_right_prompt_scores_higher(reward, drawn, scores):
    images, prompts = drawn
    wrong = reward.measure(images, prompts[1:] + prompts[:1])["spm_score"]
    assert (scores > wrong).mean() > 0.9


def test_an_abstract_reward_has_the_shapes_of_the_loaded_one(reward):
    abstract = load_reward("spm", Context(kind="sd", abstract=True))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), reward.params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract.params) == shapes
    assert abstract.feature_shapes() == reward.feature_shapes()
    features = reward.features(["a prompt"])
    assert (features.shape, features.dtype) == (reward.feature_shapes().shape, reward.feature_shapes().dtype)


def test_the_model_comes_from_the_options_or_the_source():
    """The source after a colon takes precedence."""
    folder = str(ASSETS / "spm")
    load_reward("spm", Context(options={"model": folder, "tokenizer": ""}))
    load_reward(f"spm:{folder}", Context(options={"model": "no/such/model"}))
    with pytest.raises(UserError, match="no such file or folder: no/such/model"):
        load_reward("spm", Context(options={"model": "no/such/model"}))


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(UserError, match="trained on clean predictions of Stable Diffusion 1.x or 2.x, but .* is SDXL"):
        load_reward("spm", Context(kind="sdxl"))
