"""The rules of DDPO on healthy and on sick curves that were made up."""

import pytest

from spo_jax.methods.ddpo.rules import RULES
from tests.support.curves import curves_of, line

FIRST_RATIO, REWARD, SPREAD, CLIPPED = RULES


@pytest.mark.parametrize(("error", "level"), [(1e-6, "good"), (2e-5, "problem")])
def test_the_first_ratio_is_1_to_a_tenth_of_the_clip_range(error, level):
    found = FIRST_RATIO(curves_of(first_ratio_error=[0.0, error, 0.0]))
    assert found.level == level
    assert FIRST_RATIO(curves_of(loss=[0.0])) is None


@pytest.mark.parametrize(
    ("last", "level", "learns"), [(2.0, "good", True), (1.0, "problem", False), (0.0, "problem", False)]
)
def test_the_reward_rises(last, level, learns):
    found = REWARD(curves_of(reward=line(1.0, last, noise=0.1)))
    assert (found.level, found.learns) == (level, learns)


def test_a_reward_that_is_the_same_for_all_images():
    assert SPREAD(curves_of(reward_spread=[1.0] * 20)) is None
    found = SPREAD(curves_of(reward_spread=[0.0] * 20))
    assert (found.level, found.learns) == ("problem", False) and "in 20 of 20 batches" in found.text


@pytest.mark.parametrize(("share", "level"), [(0.5, "good"), (0.95, "note")])
def test_clipped(share, level):
    assert CLIPPED(curves_of(clip_fraction=[share] * 20)).level == level
