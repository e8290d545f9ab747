"""What a guard saw, in sentences."""

from collections.abc import Mapping, Sequence

from spo_jax.core.words import counted, listed, readable
from spo_jax.run.guard.look import Look
from spo_jax.run.guard.rule import SEEN, sees_it

DIVERGES = "Train with a lower optimizer.learning_rate."
_NAMED = 3  # scores that a sentence names


def alarm_of(looks: Sequence[Look], in_a_row: int) -> tuple[Look, Look] | None:
    """Returns the latest look at which an alarm was given, after the look that it was compared with, or None.

    Args:
      looks: the looks of a run, in order.
      in_a_row: worse looks in a row that are an alarm.
    """
    compared = [look for look in looks if look.gain is not None]  # a look that is not finite adds nothing to its row
    # A resumed run may have a lower number than the one by which its looks were taken.
    alarms = [look for look in compared if look.worse == in_a_row]
    alarms = alarms or [look for look in compared if look.worse > in_a_row]
    found = [(other, alarms[-1]) for other in looks if alarms and other.batch == alarms[-1].best]
    return found[0] if found else None


def sentence(best: Look, now: Look) -> str:
    """Says in one sentence what an alarm is about.

    Args:
      best: the look that it was compared with.
      now: the look at which it was given.
    """
    by = f"by {-now.gain:.1f} standard errors ({_moved(best.held_out, now.held_out)})"
    fell = f"the held-out scores fell {by}"
    since = f"since {when(best.batch)}"
    looks = f"in {counted(now.worse, 'look')} in a row" if now.worse > 1 else "in one look"
    if now.rise is None:
        return f"the run is past its best: {since} {fell}, {looks}."
    went = "fell" if sees_it(now.rise) else "rose" if now.rise > SEEN else "did not fall"
    moved = _moved(best.trained, now.trained)
    own = f"its own score {went} ({moved + ', ' if moved else ''}{now.rise:+.1f} standard errors)"
    if sees_it(now.rise):
        return f"the run diverges: {since} {own}, and so did the held-out scores, {by}, {looks}."
    return f"the run exploits the errors of its judge: {since} {own}, while {fell}, {looks}."


def outcome(looks: Sequence[Look], in_a_row: int, stopped: int | None, exported: int) -> str:
    """Says in a sentence or two what the guard of a finished run saw and did.

    Args:
      looks: the looks of the run, in order.
      in_a_row: worse looks in a row that are an alarm.
      stopped: batch after which the guard stopped the run; None if it did not.
      exported: batch of the weights that were exported.
    """
    alarm = alarm_of(looks, in_a_row)
    if alarm is not None:
        advice = f" {DIVERGES}" if sees_it(alarm[1].rise) else ""
        if stopped is not None:
            end = _exported(looks[-1], exported)
            return f"Stopped by the guard after batch {stopped}: {sentence(*alarm)} {end}{advice}"
        return f"The guard warned in batch {alarm[1].batch}: {sentence(*alarm)} {_best(looks[-1], exported)}{advice}"
    if looks[-1].worse:
        return f"{latest(looks)}, which is no alarm yet. {_best(looks[-1], exported)}"
    return f"{nothing(looks)}. {_best(looks[-1], exported)}"


def nothing(looks: Sequence[Look]) -> str:
    """Says that the looks of a run gave no alarm."""
    return f"The guard saw no lasting fall of the held-out scores in {taken(looks)}"


def latest(looks: Sequence[Look]) -> str:
    """Says that the latest look is a worse one."""
    return f"The latest of the guard's {taken(looks)} is worse than the best one ({when(looks[-1].best)}), beyond noise"


def taken(looks: Sequence[Look]) -> str:
    """Counts the looks since training began."""
    return counted(sum(look.batch > 0 for look in looks), "look")


def _exported(last: Look, exported: int) -> str:
    if last.best == exported:
        return f"The weights after batch {exported}, the best by the held-out scores, are what was exported."
    if last.best:
        return (
            f"The best by the held-out scores was {when(last.best)}, whose checkpoint is no longer there; what was "
            f"exported is batch {exported}."
        )
    return (
        f"By the held-out scores nothing was better than the model {when(last.best)}; what was exported is batch "
        f"{exported}, the best since."
    )


def _best(last: Look, exported: int) -> str:
    if last.best == exported:
        return f"Its last look, after batch {exported}, was the best by the held-out scores."
    if last.best:
        return f"The best by the held-out scores was {when(last.best)}; what was exported is batch {exported}."
    return (
        f"By the held-out scores nothing was better than the model {when(last.best)}; what was exported is batch "
        f"{exported}."
    )


def when(batch: int) -> str:
    """Names the moment after a number of batches, as part of a sentence."""
    return f"batch {batch}" if batch else "before training"


def _moved(before: Mapping[str, float], now: Mapping[str, float]) -> str:
    moved = [name for name, value in now.items() if name in before and value != before[name]]
    parts = [f"{readable(name)} from {before[name]:.3g} to {now[name]:.3g}" for name in moved[:_NAMED]]
    return listed(parts)
