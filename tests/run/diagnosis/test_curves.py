"""Curves as rules read them: gaps, groups, and changes beyond the noise."""

import numpy as np
import pytest

from spo_jax.run.diagnosis.curves import Curve
from tests.support.curves import curves_of, every, line


def test_a_curve_skips_gaps_and_what_is_not_finite():
    curves = curves_of(loss=[1.0, None, np.nan, 4.0])
    assert curves.curve("loss") == Curve([1, 4], [1.0, 4.0])
    assert len(curves.curve("absent")) == 0 and np.isnan(curves.curve("absent").latest)


def test_a_group_is_the_mean_of_its_curves():
    curves = curves_of(at__t0501=[1.0, 2.0], at__t0001=[3.0, None], at__other=[5.0], at_t=[9.0, 9.0])
    assert curves.mean("at") == Curve([1, 2], [3.0, 2.0])
    assert list(curves.timesteps("at")) == [1, 501]


def test_row_0_is_no_batch():
    assert curves_of(before={"eval_a": 1.0}, loss=[1.0, 2.0]).batches == 2


def test_a_setting_is_found_in_its_group():
    curves = curves_of({"spo": {"threshold": 0.9}}, loss=[])
    assert curves.setting("spo.threshold", 0.3) == 0.9
    assert curves.setting("spo.absent", 0.3) == curves.setting("absent.threshold", 0.3) == 0.3


@pytest.mark.parametrize(("last", "rises", "falls"), [(1.0, True, False), (-1.0, False, True), (0.02, False, False)])
def test_a_change_counts_beyond_its_noise(last, rises, falls):
    change = Curve(list(range(40)), line(0, last, noise=0.2).tolist()).change()
    assert (change.rises, change.falls) == (rises, falls)


def test_the_change_is_that_of_the_line_and_its_error_that_of_least_squares():
    """Against numpy's own fit, so that a threshold of two errors means what it says."""
    values = line(1, 3, noise=0.5)
    x = np.linspace(0, 1, 40)
    (slope, _), covariance = np.polyfit(x, values, 1, cov=True)
    change = Curve(list(range(40)), values.tolist()).change()
    assert change.total == pytest.approx(slope) and change.error == pytest.approx(np.sqrt(covariance[0, 0]))


def test_few_points_have_no_direction():
    change = Curve(list(range(5)), [1.0, 2.0, 3.0, 4.0, 5.0]).change()
    assert not change.rises and not change.falls


def test_every_places_values():
    assert every(2, [7, 8], 5) == [None, 7, None, 8, None]
