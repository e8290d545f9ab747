"""Images before, during and after training: prompts, scores, pairs, grids, and rewards that cannot be used together."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.images import image_grid, to_uint8
from spo_jax.methods.common import before_after
from spo_jax.methods.common.before_after import BeforeAfter, load_rewards, reward_options
from spo_jax.methods.common.settings import EvalSettings, JudgeSettings
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.nn.lora import init_lora
from tests.support.networks import random_weights, small_pipeline

PROMPTS = ["a red star", "a blue moon", "a green disc"]
SETTINGS = EvalSettings(images=5, grid_images=2, batch=3, steps=2)


class Brightness:
    """The mean of every image, and its negative, which improves by falling."""

    meanings = {"brightness": "mean of the pixels", "darkness": "its negative"}
    lower_is_better = ("darkness",)

    def __init__(self):
        self.checked = []
        self.prompts = []

    def check(self, prompts, size):
        self.checked.append((list(prompts), size))

    def measure(self, images, prompts):
        self.prompts.append(list(prompts))
        mean = images.mean((1, 2, 3))
        return {"brightness": mean, "darkness": -mean}


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def adapters(pipeline):
    """A fresh adapter, and one that was trained."""
    fresh = jax.jit(lambda: init_lora(jax.random.key(0), pipeline.params["unet"], 2))()
    return fresh, random_weights(3, fresh)


@pytest.fixture(scope="module")
def reward():
    return Brightness()


@pytest.fixture(scope="module")
def evaluation(pipeline, reward):
    return BeforeAfter(pipeline, SETTINGS, 1.0, PROMPTS, [reward])


def test_prompts_are_repeated_until_there_are_enough(evaluation, reward):
    assert evaluation.prompts == [*PROMPTS, *PROMPTS[:2]]
    assert reward.checked == [(evaluation.prompts, (16, 16))]


def test_the_fresh_adapter_draws_the_base_model_s_images(evaluation, adapters):
    """Those of an adapter of zeros, which adds nothing."""
    fresh, trained = adapters
    base = evaluation.images(jax.tree.map(jnp.zeros_like, fresh))
    images = evaluation.images(fresh)
    assert images.shape == (5, 16, 16, 3)
    np.testing.assert_allclose(images, base, atol=1e-5)
    np.testing.assert_allclose(evaluation.images(fresh, 2), base[:2], atol=1e-4)
    assert np.abs(evaluation.images(trained) - base).max() > 1e-2


def test_scores_are_compared_image_by_image(evaluation, adapters, reward):
    fresh, trained = adapters
    assert evaluation.start(fresh) == pytest.approx(evaluation.evaluate(0, fresh)[0], abs=1e-4)
    summary, pairs = evaluation.finish(trained)
    before = evaluation.images(fresh).mean((1, 2, 3))
    after = evaluation.images(trained).mean((1, 2, 3))
    score = summary["scores"]["brightness"]
    assert summary["images"] == 5
    assert score["before"] == pytest.approx(before.mean(), abs=1e-5)
    assert score["change"] == pytest.approx((after - before).mean(), abs=1e-5)
    assert score["meaning"] == "mean of the pixels"
    assert not score["lower_is_better"] and summary["scores"]["darkness"]["lower_is_better"]
    assert reward.prompts[-1] == evaluation.prompts
    assert [pair.prompt for pair in pairs] == evaluation.prompts
    for index, when in enumerate((fresh, trained), start=1):
        images = to_uint8(evaluation.images(when))
        np.testing.assert_array_equal(np.stack([pair[index] for pair in pairs]), images)
    assert any((pair.before != pair.after).any() for pair in pairs)


def test_there_is_no_after_without_a_before(pipeline, reward, adapters):
    with pytest.raises(ValueError, match="start comes before BeforeAfter.finish"):
        BeforeAfter(pipeline, SETTINGS, 1.0, PROMPTS, [reward]).finish(adapters[1])


def test_during_training_the_first_images_are_drawn_and_scored(evaluation, adapters, reward):
    images = evaluation.images(adapters[1], 2)
    row, grid = evaluation.evaluate(1, adapters[1])
    np.testing.assert_array_equal(grid, image_grid(to_uint8(images), before_after.GRID_COLUMNS))
    assert row == pytest.approx({"eval_brightness": images.mean(), "eval_darkness": -images.mean()}, abs=1e-5)
    assert reward.prompts[-1] == PROMPTS[:2]
    assert row.keys() == evaluation.charts.keys()
    assert evaluation.charts["eval_brightness"] == ("Brightness of 2 evaluation images", "mean of the pixels")


def test_the_total_is_on_one_scale_before_during_and_after_training(pipeline, adapters):
    """It is fitted to all images before training, also where fewer are drawn; the first score of a reward counts."""
    settings = dataclasses.replace(SETTINGS, rewards="mine", weights="2")
    evaluation = BeforeAfter(pipeline, settings, 1.0, PROMPTS, [Brightness()])
    fresh, trained = adapters
    before, after = (evaluation.images(lora).mean((1, 2, 3)) for lora in (fresh, trained))

    def expected(brightness):
        return 2 * (brightness - before.mean()).mean() / before.std()

    assert evaluation.start(fresh)["eval_total"] == pytest.approx(expected(before[:2]), abs=1e-3)
    assert evaluation.evaluate(1, trained)[0]["eval_total"] == pytest.approx(expected(after[:2]), abs=1e-3)
    assert evaluation.charts["eval_total"][1].startswith("2 × brightness, each in standard deviations")
    score = evaluation.finish(trained)[0]["scores"]["total"]
    assert score["before"] == pytest.approx(0, abs=1e-3) and score["after"] == pytest.approx(expected(after), abs=1e-3)
    assert score["meaning"] == evaluation.charts["eval_total"][1]
    assert not score["lower_is_better"] and score["reward"] == ""


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_scores_that_are_not_finite_end_no_training(evaluation, adapters):
    """The losses decide about that; the curve has a gap."""
    damaged = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), adapters[0])
    row, _ = evaluation.evaluate(2, damaged)
    assert np.isnan(row["eval_brightness"])


def test_a_score_that_is_not_finite_is_refused(evaluation):
    with pytest.raises(UserError, match="brightness of the evaluation images is not finite: check eval.guidance_scale"):
        evaluation.measure(np.full((5, 16, 16, 3), np.nan, np.float32))


def test_two_scores_of_one_name_are_refused(pipeline, monkeypatch):
    monkeypatch.setattr(before_after, "Sampler", lambda *_, **__: None)
    with pytest.raises(UserError, match="eval.rewards: several rewards give a score brightness, darkness; keep one"):
        BeforeAfter(pipeline, SETTINGS, 1.0, PROMPTS, [Brightness(), Brightness()])


def test_a_reward_is_loaded_once_with_the_options_of_its_group(pipeline, monkeypatch):
    """A judge that training has loaded already is not loaded again."""
    loaded = []

    def load(spec, context):
        loaded.append((spec, context.kind, dict(context.options)))
        return Brightness()

    monkeypatch.setattr(before_after, "load_reward", load)
    settings = SPOTrainSettings(spm=JudgeSettings(model="folder"))
    judge = Brightness()
    shared = {"spm": judge}
    evaluation = dataclasses.replace(SETTINGS, rewards="spm, spm:other, toy, toy")
    rewards = load_rewards(evaluation.reward_names, pipeline, None, settings, shared)
    options = {"model": "folder", "tokenizer": ""}
    assert loaded == [("spm:other", "sd", options), ("toy", "sd", {})]
    assert rewards[0] is judge and rewards[2] is rewards[3]


def test_only_groups_of_settings_are_options():
    settings = SimpleNamespace(spm=JudgeSettings(), toy="a string", prompts="spm")
    assert reward_options(settings, "spm:source") == {"model": "toy", "tokenizer": ""}
    assert reward_options(settings, "toy") == reward_options(settings, "my.reward") == {}
