"""Rules for every method, each on a healthy and on a sick curve that was made up."""

import numpy as np
import pytest

from spo_jax.core.words import readable
from spo_jax.methods import rules_of
from spo_jax.run.diagnosis import shared
from spo_jax.run.diagnosis.curves import Curves
from spo_jax.run.diagnosis.rule import diagnose, headline
from tests.support.commands import ROOT
from tests.support.curves import curves_of, line
from tests.support.guarded import hacked, make_guard

NORMS = line(0.1, 0.12, noise=0.02)


def score(change, error, lower=False):
    return {"change": change, "change_se": error, "lower_is_better": lower}


def test_a_metric_that_is_not_finite():
    assert shared.not_finite(curves_of(loss=[0.7, 0.6])) is None
    found = shared.not_finite(curves_of({"optimizer": {"learning_rate": 0.5}}, loss=[0.7, np.nan, np.inf]))
    assert found.level == "problem" and found.text == "loss is not finite in batch 2."
    assert "learning_rate (now 0.5)" in found.advice


def test_few_batches():
    assert shared.few_batches(curves_of(loss=np.ones(15))) is None
    found = shared.few_batches(curves_of(loss=[1.0]))
    assert "only 1 batch," in found.text and found.advice == "Look again after 15 batches."
    assert not shared.few_batches(curves_of(loss=[1.0], scores={"a": score(0.1, 0.01)})).advice  # it is finished


@pytest.mark.parametrize(
    ("scores", "level", "learns", "text"),
    [
        ({"aesthetic": score(0.1, 0.01)}, "good", True, "Better after training: aesthetic +0.100 ± 0.010."),
        ({"a": score(0.1, 0.01), "b": score(-0.1, 0.01)}, "problem", True, "Worse after training than before: b -0.1"),
        ({"b": score(0.1, 0.01, lower=True)}, "problem", False, "Worse after training"),
        ({"a": score(0.01, 0.01)}, "note", False, "No score changed"),
    ],
)
def test_scores(scores, level, learns, text):
    found = shared.scores(curves_of(scores=scores))
    assert (found.level, found.learns) == (level, learns) and text.replace("0.100 ± 0.010", "0.10 ± 0.01") in found.text


def test_no_scores():
    assert shared.scores(curves_of()) is None


@pytest.mark.parametrize(
    ("norms", "level", "text"),
    [
        (NORMS, "good", "without zeros or spikes"),
        ([*NORMS, 5.0], "note", "1 batch above 10 times, the first is 41"),
        ([*NORMS, 5.0, 4.0, 6.0], "problem", "3 batches above 10 times"),
        ([*NORMS, 0.0], "note", "exactly 0 in 1 of 41 batches"),
        ([*NORMS[:10], *np.zeros(30)], "problem", "exactly 0 in 30 of 40 batches"),
    ],
)
def test_gradient_norm(norms, level, text):
    found = shared.gradient_norm(curves_of(grad_norm=norms))
    assert found.level == level and text in found.text


def test_speed():
    """The first batch is slow because it warms up; a batch in the middle may be."""
    steady = [30.0, *np.full(30, 2.0)]
    assert shared.speed(curves_of(seconds__rollout=steady, seconds__update=steady)).text == "A batch takes 4.0 s."
    slow = shared.speed(curves_of(seconds__rollout=[*steady, *np.full(10, 90.0)]))
    assert slow.level == "note" and slow.text == "A batch takes 1 min 30 s now and took 2.0 s before."
    assert shared.speed(curves_of(seconds__rollout=[2.0] * 5)) is None


def test_problems_come_first_and_rules_are_named():
    curves = curves_of(grad_norm=NORMS, loss=[0.7, np.nan])
    found = diagnose(curves, shared.RULES)
    assert [(finding.rule, finding.level) for finding in found] == [
        ("not finite", "problem"),
        ("gradient norm", "good"),
    ]


@pytest.mark.parametrize(
    ("curves", "text"),
    [
        (curves_of(scores={"aesthetic": score(0.1, 0.01)}), "Better on aesthetic by 0.10 ± 0.01. Nothing looks wrong."),
        (curves_of(scores={"a": score(-0.1, 0.01)}), "Worse on a by 0.10 ± 0.01. 1 thing looks wrong."),
        (curves_of(loss=[1.0]), "Too early to say whether it learns."),
        (curves_of(loss=[np.nan]), "It is not learning. 1 thing looks wrong."),
    ],
)
def test_the_headline(curves, text):
    assert headline(diagnose(curves, shared.RULES), curves) == text


def test_every_rule_is_in_the_documents():
    """With its name as the doctor prints it; a method's rules have the method beside them."""
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for method in ("spo", "spm", "finetune"):
        for rule in rules_of(method):
            assert f"| {readable(rule.__name__)} " in text, rule.__name__


def looked(batches, in_a_row=2):
    """The curves of a run whose guard looked at every batch."""
    guard = make_guard(hacked(best=3), 20, mode="warn")
    for batch in range(1, batches + 1):
        guard.look(batch, None)
    rows = [{"step": look.batch, **look.row()} for look in guard.looks]
    return Curves(rows, {"eval": {"guard_looks": in_a_row}})


@pytest.mark.parametrize(
    ("batches", "level", "text"),
    [
        (4, "good", "The guard saw no lasting fall of the held-out scores in 4 looks; the best was in batch 3."),
        (5, "note", "The latest of the guard's 5 looks is worse than the best one"),
        (6, "problem", "The run exploits the errors of its judge: since batch 3 its own score rose (judge from"),
    ],
)
def test_hacking(batches, level, text):
    found = shared.hacking(looked(batches))
    assert found.level == level and found.text.startswith(text)
    assert ("Take batch 3, which is the best" in found.advice) == (level == "problem")


def test_a_run_that_diverges_needs_another_rate_and_no_other_judge():
    curves = looked(6)
    for row in curves.rows:
        if "guard_change/trained" in row:
            row["guard_change/trained"] = -9.0
    found = shared.hacking(curves)
    assert found.level == "problem" and found.text.startswith("The run diverges: since batch 3 its own score fell")
    assert found.advice.endswith(". Train with a lower optimizer.learning_rate.") and "judge" not in found.advice


def test_hacking_needs_looks_and_follows_the_settings():
    assert shared.hacking(curves_of(loss=[0.7])) is None
    assert shared.hacking(looked(0)) is None
    for in_a_row, missing in ((3, "1 more worse look"), (4, "2 more worse looks")):
        found = shared.hacking(looked(6, in_a_row))
        assert found.level == "note" and found.advice.startswith(f"With {missing} in a row there would be an alarm")
