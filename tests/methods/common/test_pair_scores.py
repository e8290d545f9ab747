"""Scores of clean pairs by a reward: those of an evaluation, computed once, bound to what they were computed from."""

import dataclasses

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.images import decode
from spo_jax.methods.common.pair_scores import reward_scores
from tests.support.pairs import noise_pairs

SIDE = 8
PROMPTS = ("a", "four", "a star")


class Brightness:
    """The mean of an image plus the length of its prompt; computed on the host."""

    meanings = {"brightness": "mean of the pixels, and the letters of the prompt"}
    lower_is_better = ()
    version = "1"

    def check(self, prompts, size):
        assert size == (SIDE, SIDE) and set(prompts) == set(PROMPTS)

    def measure(self, images, prompts):
        assert np.abs(images).max() <= 1
        return {"brightness": images.mean((1, 2, 3)) + np.array([len(prompt) for prompt in prompts], np.float32)}


@pytest.fixture(scope="module")
def pairs():
    return noise_pairs(19, prompts=PROMPTS)  # more than a batch, and not a multiple of it


def scores(folder, pairs, reward, spec="brightness"):
    return reward_scores(folder, pairs, reward, spec, "config field dpo.reward", side=SIDE, threads=0)


def test_both_images_of_a_pair_are_scored_for_its_prompt(pairs, tmp_path):
    found = scores(tmp_path, pairs, Brightness())
    assert found.shape == (19, 2) and found.dtype == np.float32
    for row, files in enumerate(pairs.files):
        expected = [decode(data, SIDE).mean() / 127.5 - 1 + len(PROMPTS[row % 3]) for data in files]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_scores_are_kept_and_bound(pairs, tmp_path):
    first = scores(tmp_path, pairs, Brightness())
    unreadable = dataclasses.replace(pairs, files=[(b"", b"")] * 19)
    np.testing.assert_array_equal(scores(tmp_path, unreadable, Brightness()), first)
    with pytest.raises(UserError, match="reward.name is brightness there and other here; choose another folder"):
        scores(tmp_path, pairs, Brightness(), "other")
    newer = Brightness()
    newer.version = "2"
    with pytest.raises(UserError, match="reward.version is 1 there and 2 here"):
        scores(tmp_path, pairs, newer)


def test_a_reward_with_several_scores_labels_nothing(pairs, tmp_path):
    several = Brightness()
    several.meanings = {"brightness": "mean", "darkness": "its negative"}
    message = "dpo.reward = 'toy' has 2 scores .brightness, darkness.: expected a reward with one"
    with pytest.raises(UserError, match=message):
        scores(tmp_path, pairs, several, "toy")
