"""Judges by name."""

import numpy as np
import pytest

from spo_jax.data import scenes
from spo_jax.rewards.evaluate import make_judge
from spo_jax.spm.model import load_spm


@pytest.fixture(scope="module")
def drawn():
    prompts = list(scenes.PROMPTS[:30])
    return scenes.draw(np.random.default_rng(0), prompts)[0], prompts


def test_scenes_judge_reads_ground_truth(drawn):
    images, prompts = drawn
    judge = make_judge("scenes", load_spm("embedded"))
    values = judge.measure(images, prompts)
    assert values.keys() == judge.meanings.keys()
    assert values["accuracy/all"].mean() > 0.95 and values["out_of_range"].max() == 0
    wrong = judge.measure(images, prompts[1:] + prompts[:1])
    assert wrong["accuracy/all"].mean() < 0.1


def test_spm_judge_does_not_depend_on_the_batch(drawn):
    images, prompts = drawn
    judge = make_judge("spm", load_spm("embedded"))
    together = judge.measure(images, prompts)["spm_score"]
    assert together.shape == (30,)
    alone = judge.measure(images[-1:], prompts[-1:])["spm_score"]
    np.testing.assert_allclose(together[-1:], alone, rtol=1e-4, atol=1e-4)
