"""Which scores of a contestant are those that its run was to please."""

from pathlib import Path

import pytest

from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.run.diagnosis.record import write_start
from spo_jax.work.evaluate.entries import Entry
from spo_jax.work.evaluate.evaluation import _trained_on
from spo_jax.work.evaluate.judges import Judge
from spo_jax.work.evaluate.lineup import Entrant, Lineup

JUDGES = [
    Judge(spec, {}, {score: "a meaning"}, (), False)
    for spec, score in (("pickscore", "pickscore"), ("spm:toy", "spm_score"), ("aesthetic", "laion_aesthetic"))
]


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        ("spm:toy", "spm_score"),
        ("sum:1*pickscore+0.1*aesthetic", "pickscore,laion_aesthetic"),
        ("sum:1*my.reward+1*my.other", None),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_all_terms_of_the_judge_are_named(tmp_path, judge, expected, weighted):
    """And the total, which is in part what the run was to please."""
    write_start(tmp_path, SPOTrainSettings(spo=SPOSettings(reward=judge)), 10, [])
    lora = Entrant(Entry("mine", "lora", str(tmp_path)), 5.0, lora=Path("lora.safetensors"))
    lineup = Lineup([Entrant(Entry("base", "base"), 5.0), lora], "sd", (8, 8, 4), (64, 64))
    found = {} if expected is None else {"mine": f"{expected},total" if weighted else expected}
    assert _trained_on(lineup, JUDGES, weighted) == found
