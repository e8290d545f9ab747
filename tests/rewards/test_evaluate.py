"""Judges by name."""

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.rewards.common.preference_model import load_spm
from spo_jax.rewards.evaluate import make_judge
from spo_jax.toy import world


@pytest.fixture(scope="module")
def drawn():
    prompts = list(world.PROMPTS[:30])
    return world.draw(np.random.default_rng(0), prompts)[0], prompts


def test_scenes_judge_reads_ground_truth(drawn):
    images, prompts = drawn
    judge = make_judge("scenes", load_spm("embedded"))
    values = judge.measure(images, prompts)
    assert values.keys() == judge.meanings.keys()
    assert values["accuracy/all"].mean() > 0.95 and values["out_of_range"].max() == 0
    wrong = judge.measure(images, prompts[1:] + prompts[:1])
    assert wrong["accuracy/all"].mean() < 0.1


def test_what_the_scenes_judge_cannot_judge_is_refused_before_anything_is_drawn():
    check = make_judge("scenes", load_spm("embedded")).check
    check(["a red star"], (32, 32))
    with pytest.raises(UserError, match="judges the 32 x 32 pixels of the toy world, not 512 x 512; take 'spm'"):
        check(["a red star"], (512, 512))
    with pytest.raises(UserError, match="outside the toy world"):
        check(["a photograph of a cat"], (32, 32))


def test_spm_judge_does_not_depend_on_the_batch(drawn):
    images, prompts = drawn
    judge = make_judge("spm", load_spm("embedded"))
    together = judge.measure(images, prompts)["spm_score"]
    assert together.shape == (30,)
    alone = judge.measure(images[-1:], prompts[-1:])["spm_score"]
    np.testing.assert_allclose(together[-1:], alone, rtol=1e-4, atol=1e-4)
