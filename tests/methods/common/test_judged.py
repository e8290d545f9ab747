"""Which scores are those of the judge that a LoRA was trained to please."""

import dataclasses

import pytest

from spo_jax.methods.common.judged import is_judge, learns_from
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings


@pytest.mark.parametrize(
    ("judge", "judges", "others"),
    [
        ("spm", ["spm", "spm:toy"], ["toy", "spm:other", ""]),
        ("pickscore", ["pickscore:my/copy", "spo_jax.rewards.pickscore", "pickscore@x"], ["aesthetic", "spm"]),
        ("pickscore:one/copy", ["pickscore", "pickscore:one/copy"], ["pickscore:another/model"]),
        ("sum:1*spm:toy+20*my.redness", ["sum:1*spm:toy+20*my.redness", "spm:toy", "my.redness"], ["toy", "spm:a"]),
    ],
)
def test_a_term_of_the_sum_that_judged_is_a_judge(judge, judges, others):
    settings = dataclasses.replace(SPOTrainSettings(), spo=SPOSettings(reward=judge))
    assert [spec for spec in [*judges, *others] if is_judge(spec, settings)] == judges


def test_a_run_learns_from_a_sum_with_its_judge_in_it():
    settings = dataclasses.replace(SPOTrainSettings(), spo=SPOSettings(reward="pickscore"))
    assert learns_from("sum:1*spm:toy+2*pickscore", settings) and not learns_from("sum:1*spm:toy+2*toy", settings)
