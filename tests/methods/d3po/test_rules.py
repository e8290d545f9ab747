"""The rules of D3PO on healthy and on sick curves that were made up."""

import pytest

from spo_jax.methods.d3po.rules import RULES
from tests.support.curves import curves_of, line

FIRST_RATIO, REWARD, CLIPPED, TIES, MARGIN = RULES


@pytest.mark.parametrize(("error", "level"), [(1e-4, "good"), (0.02, "problem")])
def test_the_first_ratio_is_1_to_a_tenth_of_the_clip_range(error, level):
    assert FIRST_RATIO(curves_of(first_ratio_error=[error, None])).level == level


def test_of_several_rewards_the_mean_rises():
    found = REWARD(curves_of(**{"reward/a": line(0.0, 2.0, noise=0.1), "reward/b": line(1.0, 2.0, noise=0.1)}))
    assert found.level == "good"


@pytest.mark.parametrize(("share", "level"), [(0.1, "good"), (0.6, "problem")])
def test_shares_of_clipped_ratios_and_of_ties(share, level):
    assert CLIPPED(curves_of(clip_fraction=[share] * 20)).level == level
    assert TIES(curves_of(ties=[share] * 20)).level == level


@pytest.mark.parametrize(("last", "level"), [(1.0, "good"), (0.0, "note"), (-1.0, "problem")])
def test_the_margin_grows_above_0(last, level):
    assert MARGIN(curves_of(margin=line(0.0, last, noise=0.1))).level == level
