"""The truth of the toy world as a reward."""

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods.common.judge import open_judge
from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.base import Context, Reward
from spo_jax.toy import world


@pytest.fixture(scope="module")
def reward():
    return load_reward("toy", Context())


def test_it_measures_the_truth(reward):
    prompts = list(world.PROMPTS[:30])
    images, _ = world.draw(np.random.default_rng(0), prompts)
    assert isinstance(reward, Reward)
    scores = reward.measure(images, prompts)
    assert scores.keys() == reward.meanings.keys() and set(reward.lower_is_better) <= scores.keys()
    assert scores["accuracy/all"].mean() > 0.95 and scores["out_of_range"].max() == 0
    wrong = reward.measure(images, prompts[1:] + prompts[:1])
    assert wrong["accuracy/all"].mean() < 0.1


def test_the_variant_terms_says_what_the_aesthetic_is_made_of(reward):
    prompts = list(world.PROMPTS[:30])
    images, _ = world.draw(np.random.default_rng(0), prompts)
    terms = load_reward("toy@terms", Context())
    assert isinstance(terms, Reward)
    scores = terms.measure(images, prompts)
    assert scores.keys() == terms.meanings.keys() and not scores.keys() & reward.meanings.keys()
    assert all(0 <= values.min() and values.max() <= 1 for values in scores.values())
    details = np.prod([scores[f"term/{name}"] for name in ("crisp", "trim", "even", "clean", "colour")], axis=0)
    product = scores["term/form"] * details ** (1 / 5)
    np.testing.assert_allclose(product, reward.measure(images, prompts)["aesthetic"], atol=1e-4)
    with pytest.raises(UserError, match="expected toy, toy@terms"):
        check_reward("toy@term", Context())


def test_other_sizes_and_prompts_are_refused_before_anything_is_drawn(reward):
    reward.check(["a red star"], (32, 32))
    with pytest.raises(UserError, match="32 x 32 pixels of the toy world, not 512 x 512; .*'spm'"):
        reward.check(["a red star"], (512, 512))
    with pytest.raises(UserError, match="outside the toy world"):
        reward.check(["a photograph of a cat"], (32, 32))


def test_it_cannot_judge_in_a_rollout(toy):
    """It is computed on the host."""
    with pytest.raises(UserError, match="spo.reward = 'toy': .* on the host .*, such as 'spm'"):
        open_judge("toy", {}, toy.pipeline, decoder="vae", group="spo")


def test_a_source_is_refused_because_there_is_nothing_to_read():
    with pytest.raises(UserError, match="eval.rewards = 'toy:x': the reward toy reads no weights; expected 'toy'"):
        check_reward("toy:x", Context())
    with pytest.raises(UserError, match="reads no weights"):
        load_reward("toy:x", Context())
