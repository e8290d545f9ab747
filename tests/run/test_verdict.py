"""The verdict on a run: honest about noise, as plain about worse as about better, and true without scores."""

import math

import numpy as np
import pytest

from spo_jax.core.statistics import paired_scores
from spo_jax.run.verdict import noise_limit, outcomes, shown_limit, verdict


def score(change, error, lower=False, count=100):
    return {"change": change, "change_se": error, "lower_is_better": lower, "count": count}


TOY = {
    "aesthetic": score(0.1153, 0.0093),
    "accuracy/colour": score(0.0, 0.0),
    "accuracy/shape": score(-0.01, 0.017),
    "out_of_range": score(-0.0022, 0.0006, lower=True),
}


@pytest.mark.parametrize(
    ("change", "error", "lower", "expected"),
    [
        (0.3, 0.1, False, "better"),
        (-0.3, 0.1, False, "worse"),
        (-0.3, 0.1, True, "better"),
        (0.3, 0.1, True, "worse"),
        (0.2, 0.1, False, "unchanged"),  # exactly two standard errors are not beyond them
        (0.0, 0.0, False, "unchanged"),
        (0.1, 0.0, False, "better"),  # every image changed by the same
        (0.3, None, False, "unknown"),
        (None, None, False, "unknown"),
        (float("nan"), 0.1, False, "unknown"),
    ],
)
def test_a_change_counts_beyond_two_standard_errors(change, error, lower, expected):
    assert outcomes({"s": score(change, error, lower)}) == {"s": expected}


def test_of_many_scores_one_beyond_two_standard_errors_is_no_finding():
    assert noise_limit(1) == pytest.approx(2) and 2.7 < noise_limit(10) < 2.9
    scores = {f"s{number}": score(0.0, 0.1) for number in range(9)} | {"one": score(0.25, 0.1)}
    assert verdict(scores).startswith("No sign of learning")
    assert verdict({"one": scores["one"]}).startswith("Better on one")


def test_runs_without_an_effect_are_seldom_called_better_or_worse():
    """At two standard errors for each of ten scores, 37 % of them would be; the limit leaves about 5 %."""
    rng = np.random.default_rng(0)
    called = [verdict({str(n): score(rng.normal(), 1.0) for n in range(10)}) for _ in range(400)]
    assert np.mean([not sentence.startswith("No sign of learning") for sentence in called]) < 0.08


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (
            TOY,
            "Better on aesthetic by 0.115 ± 0.009 and out of range by 0.0022 ± 0.0006; no change beyond noise in "
            "accuracy (colour and shape).",
        ),
        ({"a": score(-0.2, 0.01)}, "Worse on a by 0.20 ± 0.01."),
        (
            {"a": score(-0.2, 0.01), "b": score(0.1, 0.01), "c": score(0.1, 0.1)},
            "Better on b by 0.10 ± 0.01, but worse on a by 0.20 ± 0.01; no change beyond noise in c.",
        ),
        ({"a": score(-0.2, 0.01), "b": score(0, 0.01)}, "Worse on a by 0.20 ± 0.01; no change beyond noise in b."),
        ({"a": score(0.2, 0.2)}, "No sign of learning: no change beyond noise in a."),
        ({}, "Not known: no score was measured both before and after training."),
        (
            {"a_b": score(0.2, None, count=1), "c": score(-1.0, None, count=1)},
            "Not known: without a standard error, a change cannot be told from noise (a b +0.2 and c -1).",
        ),
        ({"a": score(None, None)}, "Not known: without a standard error, a change cannot be told from noise (a –)."),
        ({"a": score(0.1, 0.01), "b": score(0.1, None)}, "Better on a by 0.10 ± 0.01; not known for b."),
        (
            {f"pair accuracy/t{t:04d}": score(0.1 + t / 1000, 0.01) for t in (0, 251, 501)},
            "Better on pair accuracy at t = 0, 251 and 501 by 0.1 to 0.6.",
        ),
        (
            {"pair accuracy/t0000": score(0.31, 0.01), "pair accuracy/t0951": score(0.01, 0.02)},
            "Better on pair accuracy at t = 0 by 0.31 ± 0.01; no change beyond noise in pair accuracy at t = 951.",
        ),
        (
            {"a": score(0.1, 0.01, count=4), "b": score(-0.1, 0.01, count=40)},
            "Better on a by 0.10 ± 0.01, but worse on b by 0.10 ± 0.01; with only 4 comparisons, this is a hint and "
            "not a finding.",
        ),
        ({"a": {"change": 0.5, "change_se": 0.1}}, "Better on a by 0.5 ± 0.1."),  # of a method outside the package
    ],
)
def test_the_sentence(scores, sentence):
    assert verdict(scores) == sentence


def test_of_measured_scores():
    """From values to the sentence: the count of comparisons and the missing error of a single one come along."""
    rng = np.random.default_rng(0)
    before = rng.normal(size=50)
    rises = paired_scores({"s": before}, {"s": before + rng.normal(1, 0.1, 50)}, {}, ["other"])
    assert verdict(rises).startswith("Better on s by ") and "hint" not in verdict(rises)
    falls = paired_scores({"s": before}, {"s": before + rng.normal(1, 0.1, 50)}, {}, ["s"])
    assert verdict(falls).startswith("Worse on s by ")
    few = paired_scores({"s": before[:4]}, {"s": before[:4] + 1 + rng.normal(0, 0.01, 4)}, {})
    assert "only 4 comparisons" in verdict(few)
    one = paired_scores({"s": before[:1]}, {"s": before[:1] + 1}, {})
    assert verdict(one).startswith("Not known: ")


@pytest.mark.parametrize("count", [2, 3, 10, 100])
def test_few_comparisons_without_an_effect_are_no_more_often_called_better_or_worse(count):
    """With the limit of exactly known errors, 8 scores of 10 comparisons would give a finding in 17 of 100 runs."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 8, count))
    changes, errors = draws.mean(2), draws.std(2, ddof=1) / np.sqrt(count)
    called = np.mean(
        [
            set(outcomes({n: score(*pair, count=count) for n, pair in enumerate(pairs)}).values()) != {"unchanged"}
            for pairs in np.stack([changes, errors], axis=2)
        ]
    )
    assert 0.025 < called < 0.065  # 0.045 is meant


def test_the_limit_is_students():
    assert noise_limit(10, 100) == pytest.approx(2.90, abs=0.01) and noise_limit(10, 10) == pytest.approx(3.8, abs=0.1)
    assert noise_limit(3, 10**6) == pytest.approx(noise_limit(3), abs=1e-4)
    assert noise_limit(3, 1) == math.inf
    assert outcomes({"s": score(0.3, 0.0, count=1)}) == {"s": "unknown"}
    assert shown_limit({"a": score(1, 1, count=10), "b": score(1, 1, count=4)}) == f"{noise_limit(2, 4):.2g}"
    assert shown_limit({"a": score(1, None, count=1)}) == "2" and shown_limit({"a": score(1, 1, count=2)}) == "14"
    assert shown_limit({n: score(1, 1, count=2) for n in range(9)}) == "126"
    assert shown_limit({"a": {"change": 1.0, "change_se": 1.0}}) == "2"
