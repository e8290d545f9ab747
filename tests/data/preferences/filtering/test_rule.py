"""A rule is read from what is typed, and says which conditions a pair fails."""

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.filtering.rule import Condition, Rule, read_rule


def test_conditions_are_read_with_sources_that_hold_their_signs():
    rule = read_rule(
        ["toy#aesthetic=-0.5", "http:http://a/b?model=vqa#x=0", "clip_score@hessel:a#b/c d=1e-2"], ["a.b=2"]
    )
    assert rule.decided == (
        Condition("toy", "aesthetic", -0.5),
        Condition("http:http://a/b?model=vqa", "x", 0.0),
        Condition("clip_score@hessel:a#b/c d", "", 0.01),
    )
    assert rule.ties == (Condition("a.b", "", 2.0),)
    assert read_rule([], []) is None


def test_the_published_rule_has_two_of_its_three_rewards():
    rule = read_rule(["lpo"], [])
    assert str(rule) == (
        "better than the loser: aesthetic > -0.5, clip_score > 0; ties: |aesthetic| < 0.2, |clip_score| < 0.03"
    )
    assert rule.is_short and rule.rewards == ["aesthetic", "clip_score"]
    whole = read_rule(["lpo", "my.vqa=0"], ["my.vqa=0.07"])
    assert not whole.is_short and whole.texts["ties"][-1] == "|my.vqa| < 0.07" and len(whole.decided) == 3


@pytest.mark.parametrize(
    ("decided", "ties", "message"),
    [
        (
            ["clip_score"],
            [],
            "--filter: 'clip_score' is no condition: expected REWARD=GAP, such as clip_score=0, or lpo",
        ),
        (["clip_score>0"], [], "'clip_score>0' is no condition"),
        (["clip_score=x"], [], "'clip_score=x' is no condition"),
        (["clip_score=nan"], [], "'clip_score=nan' is no condition"),
        (["=1"], [], "'=1' is no condition"),
        ([""], [], "'' is no condition"),
        (["lpo", "aesthetic=0"], [], "--filter: aesthetic has two gaps: expected one"),
        ([], ["lpo"], "--filter-ties: 'lpo' is no condition: expected REWARD=GAP, such as clip_score=0.03"),
        ([], ["a=0"], "--filter-ties: 'a=0': no two scores differ by less than 0: expected a gap above 0"),
    ],
)
def test_what_is_no_condition_is_refused(decided, ties, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        read_rule(decided, ties)


def test_winners_have_to_be_better_and_ties_alike():
    rule = Rule((Condition("b", "", 0.0), Condition("a", "x", -0.5)), (Condition("b", "", 0.25),))
    assert rule.columns == [("a", "x"), ("b", "")]
    scores = np.array([[1, 2], [4, 3]], np.float32)  # the first image is worse by 1 in a, and better by 1 in b
    assert rule.failed(scores, (1.0, 0.0)) == ["a#x > -0.5"]
    assert rule.failed(scores, (0.0, 1.0)) == ["b > 0"]
    assert rule.failed(scores, (0.5, 0.5)) == ["|b| < 0.25"]
    assert rule.failed(np.zeros((2, 2), np.float32), (1.0, 0.0)) == ["b > 0"]  # the gap has to be above the limit
    assert rule.failed(np.array([[1, 0], [0, 0.2]], np.float32), (0.5, 0.5)) == []
