"""Looks of a run's guard: whose images they are, what scores them, and that none is drawn twice."""

import dataclasses

import jax
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.signs import image_signs
from spo_jax.methods.common.before_after import BeforeAfter
from spo_jax.methods.common.judged import check_held_out
from spo_jax.methods.common.looks import make_guard
from spo_jax.methods.common.settings import EvalSettings
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.nn.lora import init_lora
from spo_jax.run.settings import LogSettings
from tests.support.networks import random_weights, small_pipeline

PROMPTS = ["a red star", "a blue moon", "a green disc"]
EVAL = EvalSettings(
    images=5, grid_images=2, batch=3, steps=2, guard="warn", guard_rewards="mine", guard_images=4, guard_every=2
)
SETTINGS = SPOTrainSettings(eval=EVAL, log=LogSettings(eval_every=3))


class Mean:
    """A reward of one score."""

    def __init__(self, name, sign=1, lower=()):
        self.meanings = {name: "mean of the pixels"}
        self.lower_is_better = lower
        self._sign = sign
        self.prompts = []

    def check(self, prompts, size):
        self.size = size

    def measure(self, images, prompts):
        self.prompts.append(list(prompts))
        (name,) = self.meanings
        return {name: self._sign * images.mean((1, 2, 3))}


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def states(pipeline):
    """A fresh adapter, and one that was trained."""
    fresh = jax.jit(lambda: init_lora(jax.random.key(0), pipeline.params["unet"], 2))()
    return [TrainState(lora, (), np.int32(0)) for lora in (fresh, random_weights(3, fresh))]


@pytest.fixture(scope="module")
def evaluation(pipeline):
    return BeforeAfter(pipeline, EVAL, 1.0, PROMPTS, [Mean("brightness")])


def counted(evaluation, monkeypatch):
    """Notes how many images are drawn each time."""
    drawn = []
    draw = evaluation.images

    def images(lora, count=None, title=""):
        drawn.append(count)
        return draw(lora, count, title)

    monkeypatch.setattr(evaluation, "images", images)
    return drawn


def test_a_look_scores_the_first_images_of_the_evaluation(evaluation, states):
    judge, held_out = Mean("judge"), Mean("darkness", -1, ["darkness"])
    guard, charts = make_guard(SETTINGS, evaluation, [held_out], judge)
    evaluation.start(states[0].params)
    guard.begin(states[0], total=6)
    row = guard.look(2, states[1])

    images = evaluation.images(states[1].params, 4)
    assert row["guard_trained_judge"] == pytest.approx(images.mean(), abs=1e-5)
    assert row["guard_darkness"] == pytest.approx(-images.mean(), abs=1e-5)
    for name, values in image_signs(images).items():
        assert row[f"guard_sign_{name}"] == pytest.approx(values.mean(), abs=1e-4)
    assert row["guard_change/held_out"] == pytest.approx(row["guard_change/trained"]), "it improves by falling"
    assert judge.prompts[-1] == held_out.prompts[-1] == [*PROMPTS, PROMPTS[0]]
    assert held_out.size == (16, 16)
    groups = {name.partition("/")[0] for name in row} - {"guard_worse_looks", "guard_best_batch"}
    assert groups == charts.keys()
    assert charts["guard_darkness"] == ("Darkness of 4 images (held out)", "mean of the pixels")


def test_images_are_drawn_once_for_the_evaluation_and_the_look(evaluation, states, monkeypatch):
    guard, _ = make_guard(SETTINGS, evaluation, [Mean("darkness")], None)
    drawn = counted(evaluation, monkeypatch)
    evaluation.start(states[0].params)
    guard.begin(states[0], total=12)
    assert drawn == [None], "the images before training"
    evaluation.evaluate(6, states[1].params)
    row = guard.look(6, states[1])
    assert drawn == [None, 4]
    guard.look(8, states[0])
    assert drawn == [None, 4, 4]
    assert "guard_trained_judge" not in row and "guard_change/trained" not in row


def test_the_interval_is_that_of_the_evaluation_by_default(evaluation):
    own, shared = (
        make_guard(dataclasses.replace(SETTINGS, eval=dataclasses.replace(EVAL, **change)), evaluation, [], None)[0]
        for change in ({}, {"guard_every": 0})
    )
    assert (own.plan.every, shared.plan.every) == (2, 3)


def test_no_more_images_than_there_are(evaluation):
    settings = dataclasses.replace(SETTINGS, eval=dataclasses.replace(EVAL, guard_images=100))
    assert make_guard(settings, evaluation, [Mean("a")], None)[0].plan.images == 5


def test_scores_of_one_name_are_refused(evaluation):
    with pytest.raises(UserError, match="eval.guard_rewards: several rewards give a score a"):
        make_guard(SETTINGS, evaluation, [Mean("a"), Mean("a")], None)
    make_guard(SETTINGS, evaluation, [Mean("a")], Mean("a"))  # the judge's is another curve


@pytest.mark.parametrize("judge", ["spm", "sum:1*spm:toy+2*my.redness"])
def test_what_judges_is_not_held_out(judge):
    spo = SPOSettings(reward=judge)
    for held_out, on, refused in (("toy,spm:toy", "stop", True), ("toy,spm:toy", "off", False), ("toy", "warn", False)):
        settings = SPOTrainSettings(spo=spo, eval=dataclasses.replace(EVAL, guard=on, guard_rewards=held_out))
        if refused:
            with pytest.raises(UserError, match="eval.guard_rewards names 'spm:toy', by which the run is judged"):
                check_held_out(settings)
        else:
            check_held_out(settings)


def test_a_sum_that_holds_the_judge_is_not_held_out():
    held_out = dataclasses.replace(EVAL, guard_rewards="sum:1*my.redness+0.1*spm:toy")
    with pytest.raises(UserError, match="eval.guard_rewards names 'sum:.*', by which the run is judged"):
        check_held_out(SPOTrainSettings(eval=held_out))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guard_rewards": " , "}, "eval.guard_rewards = ' , ': expected at least one reward that is not trained on"),
        ({"guard": "halt"}, "eval.guard = 'halt': expected 'off' or 'warn' or 'stop'"),
        ({"guard_images": 1}, "eval.guard_images = 1: expected 2 to"),
        ({"guard_looks": 0}, "eval.guard_looks = 0: expected 1 to"),
        ({"guard_every": -1}, "eval.guard_every = -1: expected 0 to"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(EVAL, **change)
