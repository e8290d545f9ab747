"""Rules for runs of every method."""

import statistics

from spo_jax.core.words import counted, duration, listed, readable, with_error
from spo_jax.run.diagnosis.curves import FEW, Curves
from spo_jax.run.diagnosis.rule import Finding, Rule
from spo_jax.run.guard.look import looks_of
from spo_jax.run.guard.rule import sees_it
from spo_jax.run.guard.sentences import DIVERGES, alarm_of, latest, nothing, sentence
from spo_jax.run.trend import FIRST, LATEST
from spo_jax.run.verdict import outcomes

# First and latest values are compared, and of fewer batches they are the same ones.
ENOUGH = FIRST + LATEST
# In healthy runs of all methods the largest norm was three times the median. Ten times is a jump, not noise.
SPIKE = 10
# Of fewer, one odd batch is all that a spike can be.
MANY_SPIKES = 0.05
# Other programs on the machine change a batch by a half; twice as long has a cause that can be found.
SLOWER = 2.0


def rising(curves: Curves, name: str, what: str, falling: str, still: str) -> Finding | None:
    """Says whether the mean of a score rises from which a run learns.

    Args:
      curves: the curves.
      name: name of the score's curve.
      what: the score in words, at the beginning of a sentence.
      falling: advice if it falls.
      still: advice if it does neither.
    """
    curve = curves.mean(name)
    if len(curve) < FEW:
        return None
    change = curve.change()
    # The ends of the fitted line, because the first and the latest batches of a short run are partly the same.
    begin, end = curve.mean - change.total / 2, curve.mean + change.total / 2
    moved = f"from {begin:.3g} to {end:.3g} along the fitted line ({change})"
    if change.rises:
        return Finding("good", f"{what} rises, {moved}.", learns=True)
    if change.falls:
        found = f"{what} falls, {moved}: the policy moves away from what it should learn."
        return Finding("problem", found, falling, learns=False)
    level = "note" if curves.batches < 2 * ENOUGH else "problem"
    return Finding(level, f"{what} does not rise by more than its noise, {moved}.", still, learns=False)


def not_finite(curves: Curves) -> Finding | None:
    """NaN and infinity, which end a run that watches them."""
    for row in curves.rows:
        bad = [name for name, value in row.items() if value is None]
        if bad:
            rate = curves.setting("optimizer.learning_rate", None)
            now = "" if rate is None else f" (now {rate:g})"
            return Finding(
                "problem",
                f"{readable(bad[0])} is not finite in batch {row['step']}.",
                f"Resume from the last checkpoint with a lower optimizer.learning_rate{now} and "
                "--resume-with-changes; if it happens in the first batches, set dtype to float32.",
                learns=False,
            )
    return None


def few_batches(curves: Curves) -> Finding | None:
    """Too few batches to say anything."""
    if curves.batches >= ENOUGH:
        return None
    return Finding(
        "note",
        f"There {'is' if curves.batches == 1 else 'are'} only {counted(curves.batches, 'batch')}, "
        f"and noise decides how they differ.",
        "" if curves.scores else f"Look again after {ENOUGH} batches.",  # a finished run will have no more
    )


def scores(curves: Curves) -> Finding | None:
    """The scores before and after a finished run, paired and with standard errors."""
    found = outcomes(curves.scores)
    worse = [name for name, what in found.items() if what == "worse"]
    better = [name for name, what in found.items() if what == "better"]
    if worse:
        changes = listed([_changed(curves, name) for name in worse])
        return Finding(
            "problem",
            f"Worse after training than before: {changes}.",
            "Compare the images in report.html. An earlier checkpoint may be better (spo_jax.export takes "
            "--run=RUN/checkpoints/STEP); next time train for fewer batches, or lower optimizer.learning_rate.",
            learns=bool(better),
        )
    if better:
        return Finding("good", f"Better after training: {listed([_changed(curves, n) for n in better])}.", learns=True)
    if found:
        return Finding(
            "note", "No score changed by more than its noise.", "Train longer, or score more images.", learns=False
        )
    return None


def _changed(curves: Curves, name: str) -> str:
    score = curves.scores[name]
    return f"{readable(name)} {with_error(score['change'], score['change_se'], digits=1, sign='+')}"


def gradient_norm(curves: Curves) -> Finding | None:
    """Gradients that are exactly 0, and gradients far above the usual ones."""
    curve = curves.curve("grad_norm")
    if len(curve) < FEW:
        return None
    zeros = sum(value == 0 for value in curve.values)
    if zeros:
        return Finding(
            "problem" if zeros > len(curve) / 10 else "note",
            f"The gradient is exactly 0 in {zeros} of {len(curve)} batches, so nothing was trained in them.",
            "With SPO, all ratios were clipped: lower optimizer.learning_rate. Otherwise the loss does not depend on "
            "the trained weights.",
        )
    usual = statistics.median(curve.values)
    spikes = [step for step, value in zip(curve.steps, curve.values, strict=True) if value > SPIKE * usual]
    if spikes:
        many = len(spikes) > MANY_SPIKES * len(curve) and len(spikes) > 1
        return Finding(
            "problem" if many else "note",
            f"The gradient norm is {max(curve.values) / usual:.0f} times its median of {usual:.2g} at the most "
            f"({counted(len(spikes), 'batch')} above {SPIKE} times, the first is {spikes[0]}).",
            "Lower optimizer.learning_rate." if many else "Single spikes are harmless: optimizer.max_grad_norm clips.",
        )
    return Finding("good", f"The gradient norm is about {usual:.2g}, without zeros or spikes.")


def speed(curves: Curves) -> Finding | None:
    """Batches that take longer than they did."""
    seconds = {}
    for row in curves.rows:
        parts = [value for name, value in row.items() if name.startswith("seconds/") and value is not None]
        if parts:
            seconds[row["step"]] = sum(parts)
    values = list(seconds.values())[1:]  # the first batch warms up
    if len(values) < 2 * LATEST:
        return None
    before, now = statistics.median(values[:-LATEST]), statistics.median(values[-LATEST:])
    if now < SLOWER * before:
        return Finding("good", f"A batch takes {duration(now)}.")
    return Finding(
        "note",
        f"A batch takes {duration(now)} now and took {duration(before)} before.",
        "Look for another program on the machine, a full disk, or a device that is throttled.",
    )


def hacking(curves: Curves) -> Finding | None:
    """What the guard's looks say: held-out scores that fall, unseen by the judge or not; `spo_jax.run.guard.rule`."""
    looks = looks_of(curves.rows)
    if len(looks) < 2:
        return None
    last = looks[-1]
    in_a_row = curves.setting("eval.guard_looks", 2)
    alarm = alarm_of(looks, in_a_row)
    if alarm:
        what = sentence(*alarm)
        best = f"batch {last.best}, which is the best (python -m spo_jax.export --run=RUN/checkpoints/best)"
        advice = f"Take {best}." if last.best else "By the held-out scores nothing is better than the base model."
        if sees_it(alarm[1].rise):
            return Finding("problem", what[0].upper() + what[1:], f"{advice} {DIVERGES}")
        advice += " Next time train for fewer batches, or lower optimizer.learning_rate."
        if last.trained:
            advice += " For good, the judge needs pairs in which what it fell for is the worse image."
        return Finding("problem", what[0].upper() + what[1:], advice)
    if last.worse:
        missing = counted(max(in_a_row - last.worse, 1), "more worse look")
        return Finding(
            "note", f"{latest(looks)}.", f"With {missing} in a row there would be an alarm: look again then."
        )
    best = f"the best was in batch {last.best}" if last.best else "none was better than before training"
    return Finding("good", f"{nothing(looks)}; {best}.")


RULES: tuple[Rule, ...] = (not_finite, few_batches, scores, hacking, gradient_norm, speed)
