"""The guard of a run: what is an alarm, which look is kept, and that a resumed run has the same guard."""

import json
import logging as stdlib_logging

import numpy as np
import pytest

from benchmarks.guard import delays, longest_rows
from spo_jax.run.guard.guard import Guard
from spo_jax.run.guard.look import looks_of
from tests.support.guarded import hacked, make_guard, measured


def look_until_end(guard: Guard, total: int, begin: int = 1) -> int:
    """Looks after every batch, as the loop does; returns the last batch."""
    for batch in range(begin, total + 1):
        if guard.is_due(batch):
            guard.look(batch, None)
        if guard.ends:
            return batch
    return total


def test_a_hacked_run_is_stopped_soon_after_its_best(caplog):
    guard = make_guard(hacked(best=3), 20)
    with caplog.at_level(stdlib_logging.WARNING):
        assert look_until_end(guard, 20) == 6
    assert guard.kept == 3 and guard.ends
    assert [look.best for look in guard.looks] == [0, 1, 2, 3, 3, 3, 3]
    assert [look.worse for look in guard.looks] == [0, 0, 0, 0, 0, 1, 2]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        "guard: the run exploits the errors of its judge: since batch 3 its own score rose (judge"
    )
    assert "quality from" in message and message.endswith("in 2 looks in a row.")


def test_a_warning_ends_nothing():
    guard = make_guard(hacked(best=3), 20, mode="warn")
    assert look_until_end(guard, 20) == 20
    assert not guard.ends and guard.looks[-1].worse == 16 and guard.kept == 3


def test_a_run_that_only_becomes_better_gives_no_alarm():
    guard = make_guard(hacked(best=20), 20)
    assert look_until_end(guard, 20) == 20
    assert guard.kept == 20 and not any(look.worse for look in guard.looks)


def test_where_the_judge_falls_too_the_run_diverges(caplog):
    """It is not hacked, but who asks to be stopped is kept from this too."""
    values = hacked(best=3)
    guard = make_guard(lambda batch: values(batch)._replace(trained={"judge": -values(batch).trained["judge"]}), 20)
    assert look_until_end(guard, 20) == 6
    assert guard.ends and guard.kept == 3
    assert "guard: the run diverges: since batch 3 its own score fell (judge from" in caplog.text
    text = guard.summary(exported=3, done=6)["text"]
    assert "and so did the held-out scores, by " in text and ", in 2 looks in a row." in text
    assert "exploit" not in text and text.endswith("Train with a lower optimizer.learning_rate.")


def test_a_run_that_ends_on_a_worse_look_is_not_said_to_be_well():
    """One look is no alarm."""
    guard = make_guard(hacked(best=0), 2)
    look_until_end(guard, 2)
    assert not guard.ends and guard.looks[-1].worse == 1
    assert guard.summary(exported=2, done=2)["text"] == (
        "The latest of the guard's 2 looks is worse than the best one (before training), beyond noise, which is no "
        "alarm yet. By the held-out scores nothing was better than the model before training; what was exported is "
        "batch 2."
    )


def test_a_judge_that_stays_at_its_highest_is_exploited_as_well():
    """It need not rise any more: it does not see that the images become worse."""
    values = hacked(best=3)
    guard = make_guard(lambda batch: values(batch)._replace(trained=values(min(batch, 3)).trained), 20)
    assert look_until_end(guard, 20) == 6
    assert guard.looks[-1].rise == 0
    assert "its own score did not fall (+0.0 standard errors)" in guard.summary(3, 6)["text"]


def test_without_a_judge_the_held_out_scores_decide():
    values = hacked(best=3)
    guard = make_guard(lambda batch: values(batch)._replace(trained={}), 20)
    assert look_until_end(guard, 20) == 6
    assert guard.looks[-1].rise is None
    quiet = make_guard(lambda batch: values(min(batch, 3))._replace(trained={}), 5)
    look_until_end(quiet, 5)
    assert quiet.summary(exported=5, done=5)["text"].startswith(
        "The guard saw no lasting fall of the held-out scores in 5 looks. "
    )


def test_worse_looks_have_to_come_in_a_row():
    """Every third look is as good as the best one."""
    values = hacked(best=1)
    guard = make_guard(lambda batch: values(1 if batch % 3 == 1 else batch), 20)
    assert look_until_end(guard, 20) == 6, "5 and 6"
    guard = make_guard(lambda batch: values(1 if batch % 3 == 1 else batch), 20, in_a_row=3)
    assert look_until_end(guard, 20) == 20


def test_looks_are_due_at_intervals_and_at_the_end():
    guard = make_guard(hacked(), 7, every=3)
    assert [batch for batch in range(1, 8) if guard.is_due(batch)] == [3, 6, 7]
    guard = make_guard(hacked(), 7, every=0)
    assert [batch for batch in range(1, 8) if guard.is_due(batch)] == [7]


def test_what_was_never_better_than_before_training_keeps_its_best_look():
    falling = hacked(best=0)
    guard = make_guard(falling, 10, in_a_row=4)
    look_until_end(guard, 10)
    assert guard.looks[-1].best == 0 and guard.kept == 1
    text = guard.summary(exported=1, done=6)["text"]
    assert "since before training" in text
    assert text.endswith(
        "nothing was better than the model before training; what was exported is batch 1, the best since."
    )


def test_scores_that_are_not_finite_are_not_compared(caplog):
    values = hacked(best=3)
    broken = measured(np.full(25, np.nan), np.zeros(25))
    guard = make_guard(lambda batch: broken if batch in (2, 6) else values(batch), 20)
    assert look_until_end(guard, 20) == 7, "5 and 7 are worse, and nobody knows about 6"
    assert guard.looks[2].gain is None and guard.kept == 3
    assert "a score after batch 2 is not finite" in caplog.text
    rows = [json.loads(json.dumps(row)) for row in guard.saved()["looks"]]
    assert len(looks_of(rows)) == 8


def test_a_look_that_is_not_finite_repeats_no_alarm(caplog):
    values = hacked(best=3)
    broken = measured(np.full(25, np.nan), np.zeros(25))
    guard = make_guard(lambda batch: broken if batch == 7 else values(batch), 7, mode="warn")
    look_until_end(guard, 7)
    assert guard.looks[-1].worse == 2 and caplog.text.count("exploits the errors") == 1
    assert guard.summary(exported=7, done=7)["text"].startswith("The guard warned in batch 6: ")


def test_without_scores_before_training_the_first_look_is_kept():
    values = hacked(best=0)
    broken = measured(np.full(25, np.nan), np.zeros(25))
    guard = make_guard(lambda batch: values(batch) if batch else broken, 20)
    look_until_end(guard, 20)
    assert guard.looks[-1].best == guard.kept == 1


def test_a_guard_of_too_few_images_for_an_alarm_says_so(caplog):
    make_guard(hacked(images=2), 3)
    assert "there will be no alarm" not in caplog.text
    make_guard(hacked(images=2), 20)
    assert "of 2 images no fall is beyond noise, so there will be no alarm" in caplog.text


@pytest.mark.parametrize("at", [1, 3, 4, 5])
def test_a_resumed_guard_is_the_same_bit_for_bit(at):
    whole = make_guard(hacked(best=3), 20)
    look_until_end(whole, 20)
    first = make_guard(hacked(best=3), 20)
    look_until_end(first, at)
    saved = json.loads(json.dumps(first.saved()))

    second = make_guard(hacked(best=3), 20)
    second.resume(saved, checkpoints=range(1, at + 1))
    assert second.saved() == first.saved() and not second.misses(at)
    assert look_until_end(second, 20, at + 1) == 6
    assert second.saved() == whole.saved()
    assert second.preserved == whole.preserved == [3, 2]


def test_a_resumed_run_takes_the_look_for_which_there_was_no_time():
    first = make_guard(hacked(), 20)
    look_until_end(first, 2)
    second = make_guard(hacked(), 20)
    second.resume(first.saved(), [1, 2])
    assert second.misses(3) and not second.misses(2)
    assert not make_guard(hacked(), 20).misses(0)


def test_looks_of_other_images_are_not_compared(caplog):
    first = make_guard(hacked(), 20)
    look_until_end(first, 4)
    second = make_guard(hacked(), 20, about={"seed": 2})
    second.resume(first.saved(), [3, 4])
    assert [look.batch for look in second.looks] == [0] and second.kept is None
    assert "are of other images" in caplog.text
    third = make_guard(hacked(), 20)
    third.resume(None, [3, 4])  # the guard was off
    assert [look.batch for look in third.looks] == [0]


def test_a_best_checkpoint_that_is_gone_is_not_exported(caplog):
    first = make_guard(hacked(best=3), 20)
    look_until_end(first, 5)
    second = make_guard(hacked(best=3), 20)
    second.resume(first.saved(), [4, 5])
    assert second.kept is None and "checkpoint of batch 3, the best so far, is no longer there" in caplog.text
    assert look_until_end(second, 20, 6) == 6
    assert second.kept == 6, "the best of those that are there"
    text = second.summary(exported=6, done=6)["text"]
    assert text.endswith("was batch 3, whose checkpoint is no longer there; what was exported is batch 6.")


def test_a_run_that_was_ended_stays_so_unless_the_settings_change():
    first = make_guard(hacked(best=3), 20)
    look_until_end(first, 20)
    again, longer = make_guard(hacked(best=3), 20), make_guard(hacked(best=3), 20, mode="warn")
    for guard in (again, longer):
        guard.resume(first.saved(), range(1, 7))
    assert again.ends and not longer.ends


def test_the_summary_tells_what_happened():
    guard = make_guard(hacked(best=3), 20)
    done = look_until_end(guard, 20)
    summary = json.loads(json.dumps(guard.summary(exported=3, done=done)))
    assert (summary["stopped_batch"], summary["best_batch"], summary["exported_batch"]) == (6, 3, 3)
    assert summary["text"].startswith("Stopped by the guard after batch 6: the run exploits")
    assert summary["text"].endswith(
        "The weights after batch 3, the best by the held-out scores, are what was exported."
    )
    assert looks_of(summary["looks"]) == guard.looks

    quiet = make_guard(hacked(best=5), 6, mode="warn")
    look_until_end(quiet, 6)
    text = quiet.summary(exported=6, done=6)["text"]
    assert text.startswith("The guard saw no lasting fall of the held-out scores in 6 looks.")
    assert text.endswith("The best by the held-out scores was batch 5; what was exported is batch 6.")
    assert quiet.summary(exported=6, done=6)["stopped_batch"] is None


@pytest.mark.parametrize("noise", ["fresh", "walk"])
def test_false_alarms_are_as_rare_as_the_documents_say(noise):
    """The judge rises in every run, and the held-out scores only wander; `benchmarks.guard` has more runs and looks."""
    longest = longest_rows(noise, images=25, looks=10, runs=200)
    assert (longest >= 2).mean() <= 0.025
    assert (longest >= 1).mean() > 0.005, "it can alarm at all"


def test_a_fall_of_a_fifth_of_a_deviation_a_look_is_found():
    found = delays(0.2, images=25, looks=20, in_a_row=2, runs=40)
    assert len(found) == 40 and np.mean(found) < 7
