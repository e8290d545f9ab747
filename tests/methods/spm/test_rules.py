"""The rules of preference models, each on a healthy and on a sick curve that was made up."""

import numpy as np
import pytest

from spo_jax.methods.common.preference import rules
from tests.support.curves import curves_of, every, line

KNOWN = {"eval": {"pairs": 400}}  # one standard error of an accuracy is 2.5%


def accuracies(clean, noisy, before=0.5, **series):
    first = {"eval_accuracy/t0000": before, "eval_accuracy/t0951": before}
    curves = {"eval_accuracy__t0000": every(10, clean), "eval_accuracy__t0951": every(10, noisy), **series}
    return curves_of(KNOWN, before=first, **curves)


def test_accuracy():
    found = rules.accuracy(accuracies([0.6, 0.65, 0.7, 0.7], [0.5, 0.5, 0.51, 0.52]))
    assert (found.level, found.learns) == ("good", True) and "70.0% of held-out pairs at t = 0" in found.text
    found = rules.accuracy(accuracies([0.5, 0.51, 0.54, 0.53], [0.5] * 4))
    assert (found.level, found.learns) == ("problem", False) and "chance (50% ± 2.5%)" in found.text


def test_accuracy_that_moved_by_less_than_its_noise_is_no_learning():
    """The mean of two timesteps has to rise by 3.5%, two standard errors."""
    assert rules.accuracy(accuracies([0.6], [0.6], before=0.59)).learns is None
    assert rules.accuracy(accuracies([0.6], [0.6], before=0.55)).learns


def test_the_best_of_several_timesteps_has_to_be_further_from_chance():
    """One of five timesteps is 2.1 standard errors above chance in about every twelfth model that knows nothing."""
    one = curves_of(KNOWN, before={"eval_accuracy/t0000": 0.5}, eval_accuracy__t0000=[0.553])
    others = {f"eval_accuracy__t0{t}01": [0.5] for t in (2, 4, 6, 8)}
    five = curves_of(KNOWN, before={"eval_accuracy/t0000": 0.5}, eval_accuracy__t0000=[0.553], **others)
    assert (rules.accuracy(one).level, rules.accuracy(five).level) == ("good", "problem")


def test_accuracy_is_not_that_of_the_toys_images():
    assert rules.accuracy(curves_of({}, **{"eval_accuracy__colour": np.ones(40)})) is None


def test_the_error_comes_from_the_counted_pairs():
    scores = {"pair accuracy/t0000": {"count": 100}}
    curves = curves_of(scores=scores, before={"eval_accuracy/t0000": 0.5}, eval_accuracy__t0000=[0.58])
    assert "50% ± 5.0%" in rules.accuracy(curves).text


def test_timesteps_at_chance():
    assert rules.chance_by_timestep(accuracies([0.7], [0.6])) is None
    found = rules.chance_by_timestep(accuracies([0.7], [0.52]))
    assert found.level == "note" and "At t = 951 its accuracy" in found.text
    assert "below t = 951 only (spo.divert_start_step)" in found.advice
    # A low timestep at chance says nothing about those above it.
    assert "Measure more held-out pairs" in rules.chance_by_timestep(accuracies([0.52], [0.7])).advice


def test_overfitting():
    falling = line(0.69, 0.2, noise=0.02)
    healthy = accuracies([0.6, 0.65, 0.7, 0.69], [0.5, 0.55, 0.55, 0.55], loss=falling)
    assert rules.overfitting(healthy).level == "good"
    found = rules.overfitting(accuracies([0.7, 0.65, 0.6, 0.55], [0.6, 0.55, 0.5, 0.5], loss=falling))
    assert found.level == "problem" and "from 65.0% in batch 10 to 52.5%" in found.text
    steady = accuracies([0.7, 0.65, 0.6, 0.55], [0.6, 0.55, 0.5, 0.5], loss=line(0.5, 0.5, noise=0.02))
    assert rules.overfitting(steady).level == "good"  # it forgets, but it does not learn its pairs by heart


@pytest.mark.parametrize(
    ("first", "last", "noise", "level", "text"),
    [
        (0.69, 0.5, 0.05, "good", "The loss falls"),
        (0.5, 0.69, 0.05, "problem", "The loss rises"),
        (0.6, 0.6, 0.05, "note", "does not fall by more than its noise"),
        (0.6931, 0.6931, 1e-4, "problem", "log 2: it gives both images of a pair the same score"),
    ],
)
def test_loss(first, last, noise, level, text):
    found = rules.loss(curves_of(loss=line(first, last, noise=noise)))
    assert found.level == level and text in found.text
