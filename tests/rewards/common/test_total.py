"""The weighted sum of rewards: what it is, what it does not depend on, and weights that cannot be used.

Totals are sums of a few float64 numbers, so 1e-12 is their rounding.
"""

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.rewards.common.total import fit_total, meaning, read_weights, signed_weights


class Named:
    """A reward of which only the names matter."""

    def __init__(self, *names, lower_is_better=()):
        self.meanings = dict.fromkeys(names, "a meaning")
        self.lower_is_better = lower_is_better

    def check(self, prompts, size):
        raise NotImplementedError

    def measure(self, images, prompts):
        raise NotImplementedError


QUALITY = Named("quality", "quality/part")
DAMAGE = Named("damage", lower_is_better=("damage",))


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return {
        "quality": rng.normal(20, 0.3, (5, 3)),
        "damage": rng.normal(0, 40, (5, 3)),
        "quality/part": np.ones((5, 3)),
    }


def test_a_weight_is_the_worth_of_a_standard_deviation(scores):
    total = fit_total(signed_weights([QUALITY, DAMAGE], (1.0, 0.5)), scores)
    base = total(scores)
    assert base.shape == (5, 3)
    np.testing.assert_allclose(base.mean(), 0, atol=1e-12)
    better = scores | {"quality": scores["quality"] + scores["quality"].std()}
    np.testing.assert_allclose(total(better) - base, 1, rtol=1e-12)
    worse = scores | {"damage": scores["damage"] + 2 * scores["damage"].std()}
    np.testing.assert_allclose(total(worse) - base, -1, rtol=1e-12)


def test_units_do_not_matter(scores):
    weights = signed_weights([QUALITY, DAMAGE], (2.0, -1.0))
    other = scores | {"quality": 100 * scores["quality"] - 7, "damage": scores["damage"] / 1000}
    np.testing.assert_allclose(fit_total(weights, scores)(scores), fit_total(weights, other)(other), rtol=1e-9)


def test_what_is_measured_later_does_not_move_the_scale(scores):
    total = fit_total({"quality": 1.0}, scores)
    one = {"quality": scores["quality"][0]}
    np.testing.assert_array_equal(total(one), total(scores)[0])


def test_a_score_without_deviation_counts_by_its_bare_difference(caplog):
    """A value such as 0.1 whose mean is rounded must not be divided by the rounding."""
    base = np.full(7, 0.1)
    with caplog.at_level("WARNING", "absl"):
        total = fit_total({"damage": -2.0}, {"damage": base})
    assert "damage is the same for all 7 images of the base model" in caplog.text
    np.testing.assert_allclose(total({"damage": base + 0.25}), -0.5, rtol=1e-12)


def test_the_sum_says_what_it_is():
    weights = signed_weights([DAMAGE, QUALITY], (1.0, 0.25))
    assert meaning(weights).startswith("- 1 × damage + 0.25 × quality, each in standard deviations")
    assert meaning(signed_weights([QUALITY, DAMAGE], (1.0, 1.0))).startswith("1 × quality - 1 × damage, ")


def test_weights_are_read():
    assert read_weights("1, 0.5,-2", ["a", "b", "c"], "--weights") == (1, 0.5, -2)
    assert read_weights(" ", ["a"], "--weights") == ()
    assert signed_weights([QUALITY], ()) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "--weights = '1': 1 weight for 2 rewards (a, b:x); expected one for each"),
        ("1,2,3", "3 weights for 2 rewards"),
        ("1,", "expected numbers with commas between them, such as 1,0.5"),
        ("1;2", "expected numbers with commas"),
        ("1,nan", "expected numbers with commas"),
        ("1,inf", "expected numbers with commas"),
        ("0,0", "expected at least one weight that is not 0"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(text, message):
    with pytest.raises(UserError) as caught:
        read_weights(text, ["a", "b:x"], "--weights")
    assert message in str(caught.value)


def test_a_score_of_the_sum_s_name_is_refused():
    with pytest.raises(UserError, match="a reward has a score total, which is the name of the weighted sum"):
        signed_weights([Named("total")], (1.0,))
