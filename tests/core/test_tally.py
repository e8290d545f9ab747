"""Votes, counted: the interval and the test, against their definitions."""

import math

import pytest

from spo_jax.core.tally import Tally, count_votes


def test_votes_are_counted():
    assert count_votes([0, 1, None, 1, 1, None]) == Tally(first=1, second=3, ties=2)


@pytest.mark.parametrize(("first", "second"), [(12, 20), (0, 5), (40, 3), (1, 0)])
def test_share_and_interval_are_wilsons(first, second):
    """The ends of Wilson's interval are the shares p at which the score (x - n p) / sqrt(n p (1 - p)) is 1.96."""
    tally = Tally(first, second, ties=7)
    n = first + second
    assert tally.share() == second / n
    for end in tally.interval():
        score = abs(second - n * end) / math.sqrt(n * end * (1 - end)) if 0 < end < 1 else 1.959964
        assert score == pytest.approx(1.959964, abs=1e-5)
        assert 0 <= end <= 1
    low, high = tally.interval()
    assert low < high and low <= tally.share() <= high


@pytest.mark.parametrize(("first", "second"), [(12, 20), (5, 0), (3, 3), (18, 30)])
def test_the_sign_test_sums_the_tails_of_a_fair_coin(first, second):
    n, most = first + second, max(first, second)
    tail = sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n
    assert Tally(first, second, ties=100).p_value() == pytest.approx(min(1, 2 * tail))


def test_without_a_decided_vote_nothing_is_known():
    tally = Tally(0, 0, ties=3)
    assert (tally.share(), tally.interval(), tally.p_value()) == (None, (0, 1), 1)
