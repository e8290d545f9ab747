"""The latest values of a curve against its first ones."""

import math

import pytest

from spo_jax.run.trend import FIRST, LATEST, trend


def rows(values, name="score"):
    return [{"step": step, name: value} for step, value in enumerate(values)]


def test_a_rise_is_shown_although_single_batches_vary_more():
    noise = [(-1) ** step for step in range(40)]
    values = [0.02 * step + other for step, other in enumerate(noise)]
    found = trend(rows(values), "score")
    begin = sum(values[:FIRST]) / FIRST
    assert found.now == pytest.approx(sum(values[-LATEST:]) / LATEST)
    assert found.change == pytest.approx(found.now - begin) and found.change > 0.3


def test_the_first_batches_have_nothing_to_be_compared_with():
    assert trend(rows([1.0, 3.0]), "score") == (2.0, None)
    assert trend(rows([1.0, 3.0]), "score").shown() == "2"
    assert math.isnan(trend([], "score").now) and trend([], "score").change is None


def test_no_batch_is_both_first_and_latest():
    """Otherwise a change would look smaller than it is."""
    found = trend(rows([0.0] * FIRST + [1.0]), "score")
    assert found == (1.0, 1.0) and found.shown(".1f") == "1.0 (+1.0)"


def test_rows_without_a_value_are_left_out():
    """The row before training has other curves, and a batch without valid pairs has no loss."""
    values = [{"eval": 3.0}, *rows([1.0] * FIRST), {"score": None}, {}, *rows([2.0, 4.0])]
    assert trend(values, "score") == (3.0, 2.0)


def test_the_lines_of_a_group_are_averaged():
    values = [{"score/t0000": 1.0, "score/t0501": 3.0, "score_of_others": 100.0}]
    assert trend(values, "score").now == 2.0
