"""The rule of the guard: changes in units of their own noise, put together over scores, and its limit."""

import math

import numpy as np
import pytest
from scipy import stats

from spo_jax.run.guard.rule import gains, in_errors, limit


def test_the_limit_is_that_of_a_t_test_for_all_looks():
    for images, looks in ((25, 1), (25, 10), (8, 100)):
        chance = stats.t.sf(limit(images, looks), images - 1)
        assert chance == pytest.approx(stats.norm.sf(2) / looks)
    assert limit(25, 10) < limit(25, 100) < limit(8, 100)
    assert limit(1, 10) == math.inf, "one image has no noise that could be known"


def test_a_single_score_is_a_paired_t_test():
    rng = np.random.default_rng(0)
    now, then = rng.normal(1, 1, (2, 30)) * 1e-3
    assert in_errors(gains({"a": now}, {"a": then})) == pytest.approx(stats.ttest_rel(now, then).statistic)
    assert in_errors(gains({"a": now}, {"a": then}, ["a"])) == pytest.approx(-stats.ttest_rel(now, then).statistic)


def test_units_do_not_matter():
    rng = np.random.default_rng(1)
    now, then = ({name: rng.normal(0, 1, 30) for name in "ab"} for _ in range(2))
    scaled = ({"a": 1000 * some["a"] + 7, "b": some["b"]} for some in (now, then))
    assert in_errors(gains(*scaled)) == pytest.approx(in_errors(gains(now, then)))


def test_scores_that_move_in_opposite_directions_cancel():
    change = np.random.default_rng(2).normal(1, 0.3, 30)
    then = {"a": np.zeros(30), "b": np.zeros(30)}
    assert in_errors(gains({"a": change, "b": -change}, then)) == 0
    assert in_errors(gains({"a": change, "b": -change}, then, ["b"])) > 10


def test_series_of_a_score_count_as_one():
    """Three accuracies do not outweigh the one other score."""
    rng = np.random.default_rng(3)
    up, down = rng.normal(1, 0.3, 30), rng.normal(-1, 0.3, 30)
    now = {"quality": up, "accuracy/a": down, "accuracy/b": down, "accuracy/c": down}
    then = {name: np.zeros(30) for name in now}
    expected = (up / up.std(ddof=1) + down / down.std(ddof=1)) / 2
    np.testing.assert_allclose(gains(now, then), expected)


def test_changes_without_noise():
    """All images changed alike, none changed, and a single image, of which no noise is known."""
    zeros = {"a": np.zeros(4)}
    assert in_errors(gains({"a": np.full(4, 0.1)}, zeros)) == 99
    assert in_errors(gains({"a": np.full(4, -0.1)}, zeros)) == -99
    assert in_errors(gains(zeros, zeros)) == 0
    assert in_errors(gains({"a": np.ones(1)}, {"a": np.zeros(1)})) == 0


def test_a_score_that_does_not_move_hides_no_other():
    change = np.random.default_rng(4).normal(1, 0.3, 30)
    then = {"a": np.zeros(30), "right": np.ones(30)}
    moved = in_errors(gains({"a": change, "right": np.ones(30)}, then))
    assert moved == pytest.approx(in_errors(gains({"a": change}, {"a": np.zeros(30)})))
