"""The rules of SPO, each on a healthy and on a sick curve that was made up."""

import dataclasses

import numpy as np
import pytest

from spo_jax.methods.spo import rules
from tests.support.curves import curves_of, every, line
from tests.support.guarded import hacked, make_guard

RATE = {"optimizer": {"learning_rate": 0.001}}
ONES = np.ones(40)
FIRST_RATIO = rules.RULES[0]


def test_the_first_ratio():
    assert FIRST_RATIO(curves_of(loss=ONES)) is None
    assert FIRST_RATIO(curves_of(first_ratio_error=[2e-5])).level == "good"
    found = FIRST_RATIO(curves_of(first_ratio_error=[0.05]))
    assert found.level == "problem" and "it is 0.05 away from it (spo.eps is 0.1)" in found.text


@pytest.mark.parametrize(
    ("share", "level", "learns", "text"),
    [
        (0.01, "good", None, "1.0% of the ratios are clipped; the ratios of winners and losers are 1.02 and 0.98"),
        (0.4, "problem", None, "40% of the ratios are clipped, which gives no gradient"),
        (0.95, "problem", False, "95% of the ratios are clipped, so hardly anything is trained any more"),
    ],
)
def test_clipped(share, level, learns, text):
    """The latest batches count: a run that explodes begins like a healthy one."""
    shares = [*np.zeros(30), *np.full(10, share)]
    series = {"clip_fraction__win": shares, "clip_fraction__lose": shares}
    found = rules.clipped(curves_of(RATE, ratio__win=1.02 * ONES, ratio__lose=0.98 * ONES, **series))
    assert (found.level, found.learns) == (level, learns) and text in found.text
    assert ("(now 0.001) to 0.0002" in found.advice) == (level == "problem")


def valid(count, share, gap, threshold, **spo):
    series = {"valid_pairs": count, "valid_share": share, "judge_gap__t0001": gap}
    return rules.valid_pairs(curves_of({"spo": {"threshold": threshold} | spo}, **series))


def test_enough_valid_pairs():
    found = valid(20 * ONES, 0.25 * ONES, ONES, 0.3)
    assert found.level == "good" and "20 pairs of a batch are valid, 25% of its pools" in found.text


def test_a_threshold_that_is_too_high():
    found = valid(0 * ONES, 0 * ONES, 0.5 * ONES, 0.9)
    assert found.level == "problem"
    assert found.advice == "Lower spo.threshold; SPO's is 0.3 for SD 1.5 and 0.4 for SDXL."
    assert "differ by 0.5 on average; spo.threshold = 0.9 asks for 2.9." in found.text


@pytest.mark.parametrize(
    ("spo", "published"), [({}, 0.3), ({"num_inner_step": 3}, 0.4), ({"judged": "noisy"}, 0.45)], ids=str
)
def test_a_published_threshold_is_not_too_high(spo, published):
    assert "a lower threshold would train on noise" in valid(0 * ONES, 0 * ONES, ONES, published, **spo).advice
    assert "Lower spo.threshold" in valid(0 * ONES, 0 * ONES, ONES, published + 0.05, **spo).advice


def test_the_gap_that_a_threshold_asks_for_is_that_of_the_softmax():
    probabilities = np.exp([2.944, 0]) / np.exp([2.944, 0]).sum()
    assert probabilities[0] - probabilities[1] == pytest.approx(0.9, abs=1e-3)


def test_a_judge_that_is_too_weak():
    found = valid(0.2 * ONES, 0.003 * ONES, 0.05 * ONES, 0.3)
    assert found.level == "problem" and "The judge hardly tells candidates apart" in found.advice


def test_pairs_that_have_been_used_up():
    found = valid(line(20, 0), line(0.25, 0), line(1, 0.1), 0.3)
    assert found.level == "good"  # five of the last ten batches have some
    found = valid([*line(20, 1), *np.zeros(20)], [*line(0.25, 0), *np.zeros(20)], ONES, 0.3)
    assert found.level == "note" and "There were enough at first" in found.advice
    found = valid([*line(20, 1), *np.zeros(20)], [*line(0.25, 0), *np.zeros(20)], ONES, 0.6)
    assert found.level == "problem" and "Lower spo.threshold" in found.advice


def test_a_judge_that_is_sure_too_early():
    healthy = {"valid_share_at__t0951": 0.1 * ONES, "valid_share_at__t0001": ONES}
    assert rules.sure_too_early(curves_of(**healthy)) is None
    sick = {**healthy, "valid_share_at__t0751": 0.95 * ONES, "valid_share_at__t0951": ONES}
    found = rules.sure_too_early(curves_of(**sick))
    assert found.level == "note" and "At t ≥ 751 the judge is sure" in found.text


@pytest.mark.parametrize(
    ("last", "count", "level", "learns"),
    [(5, 40, "good", True), (3, 40, "problem", False), (4, 40, "problem", False), (4, 20, "note", False)],
)
def test_the_score_of_the_judge(last, count, level, learns):
    found = rules.judge_score(curves_of(judge_score__t0001=line(4, last, count, noise=0.3)))
    assert (found.level, found.learns) == (level, learns)


def test_the_score_of_the_judge_in_a_short_run_is_told_by_the_ends_of_the_line():
    """The means of the first 5 and of the latest 10 of 10 batches would be 4.22 and 4.5."""
    found = rules.judge_score(curves_of(judge_score__t0001=line(4, 5, 10)))
    assert "rises, from 4 to 5 along the fitted line (+1.0" in found.text


@pytest.mark.parametrize(("mean", "level"), [(1e-3, "good"), (0, "note"), (-1e-3, "problem")])
def test_the_margin(mean, level):
    found = rules.margin(curves_of(margin=mean + line(0, 0, noise=5e-4)))
    assert found.level == level and found.learns == (level == "good")


def test_a_margin_without_gradients():
    clipped = {"clip_fraction__win": ONES}
    assert rules.margin(curves_of(margin=line(0, 0, noise=1e-3), **clipped)).advice == "The clipped ratios explain it."


RISING = line(4, 6, noise=0.3)


def against(judge, truth, before, lower=()):
    series = {"judge_score__t1": judge, "eval_aesthetic": every(10, truth)}
    return rules.past_its_best(curves_of(lower=lower, before={"eval_aesthetic": before}, **series))


def test_the_judge_and_the_other_scores_rise_together():
    assert against(RISING, [0.4, 0.45, 0.46, 0.455], 0.3) is None
    assert against(RISING, [0.2, 0.1, 0.05, 0.05], 0.3, lower=["aesthetic"]) is None


def test_other_scores_fall_while_the_judge_rises():
    found = against(RISING, [0.42, 0.4, 0.3, 0.25], 0.3)
    assert found.level == "problem" and "aesthetic went from 0.42 in batch 10 to 0.25" in found.text
    assert "the judge's score rises meanwhile, so its errors are what is learnt" in found.text
    assert "went from 0.1 in batch 10 to 0.3" in against(RISING, [0.1, 0.2, 0.3, 0.3], 0.2, ["aesthetic"]).text


FALLING = every(10, [4, 3, 2, 1])


def test_the_judges_own_score_is_no_other():
    series = {"judge_score__t1": RISING, "eval_pickscore": FALLING}
    assert rules.past_its_best(curves_of(judges=["pickscore"], **series)) is None
    assert "pickscore went from 4" in rules.past_its_best(curves_of(judges=["spm_score"], **series)).text


def test_a_preference_model_that_does_not_judge_is_another():
    found = rules.past_its_best(curves_of(judges=["pickscore"], judge_score__t1=RISING, eval_spm_score=FALLING))
    assert found.level == "problem" and "spm score went from 4 in batch 10 to 1" in found.text


@pytest.mark.parametrize(("judge", "fallen"), [("spm", False), ("spm:toy_people", False), ("pickscore", True)])
def test_runs_of_earlier_versions_do_not_name_the_scores_of_the_judge(judge, fallen):
    series = {"judge_score__t1": RISING, "eval_spm_score_801": FALLING}
    curves = curves_of({"spo": {"reward": judge}}, judges=None, **series)
    assert (rules.past_its_best(curves) is not None) == fallen


def test_other_scores_fall_and_the_judge_does_not_rise():
    found = against(-RISING, [0.2, 0.15, 0.1, 0.1], 0.3)
    assert "aesthetic went from 0.3 before training to 0.1; the steps are too long" in found.text


def test_a_score_of_few_images_that_wavers_is_not_past_its_best():
    """Of 16 images one is 0.0625; the toy's accuracies waver by one of them."""
    assert against(RISING, [0.9375, 1.0, 0.9375, 0.9375], 0.9375) is None


def test_a_score_whose_direction_is_not_known_says_nothing():
    series = {"judge_score__t1": RISING, "eval_aesthetic": every(10, [0.42, 0.4, 0.3, 0.25])}
    assert rules.past_its_best(curves_of(lower=None, **series)) is None
    assert rules.past_its_best(curves_of(**series)) is not None


def test_where_a_guard_has_given_an_alarm_its_own_rule_tells_it():
    curves = curves_of(judge_score__t1=RISING, eval_aesthetic=every(10, [0.42, 0.4, 0.3, 0.25]))
    assert rules.past_its_best(curves) is not None
    guard = make_guard(hacked(best=3), 20)
    for batch in range(1, 7):
        guard.look(batch, None)
    rows = [{**row, **look.row()} for row, look in zip(curves.rows, guard.looks, strict=False)]
    assert rules.past_its_best(dataclasses.replace(curves, rows=[*rows, *curves.rows[len(rows) :]])) is None
