"""What the numbers say, in sentences that follow from them, whatever they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.compare_methods.results import ACCURACY, AESTHETIC, Base, difference, gained, summarised, work_to_reach
from spo_jax.core.statistics import Estimate

RIVAL = "diffusion_dpo"
WHOLE = "full"  # SPO among its ablations
OURS = ("spo", "gradspo")  # SPO and its variant
TARGET = 1 / 5  # share of the rival's work at which SPO should have reached the rival's best
MARGIN = 0.02  # accuracy that may be lost, as in the gates of the toy
# Shares of the rival's best level at which work is compared. Where a curve is flat, the work at its very top says
# little, and would make a rival look expensive.
LEVELS = (0.9, 1.0)

Entry = Mapping[str, Any]


def rival_of(entries: Sequence[Entry]) -> Entry | None:
    """Returns the entry with which the others are compared: Diffusion-DPO or, of ablations, SPO itself."""
    return next((entry for entry in entries if entry["name"] in (RIVAL, WHOLE)), None)


def sentences(entries: Sequence[Entry], base: Base) -> list[str]:
    """Returns the verdict on each contestant against `rival_of` them, and on the target that was set for SPO.

    Args:
      entries: entries on the same labels.
      base: the measurement of the base.
    """
    by_name = {entry["name"]: entry for entry in entries}
    rival = rival_of(entries)
    if rival is None:
        return ["What the others would be compared with is missing, so there is no verdict."]
    told = [against(entry, rival, base) for entry in entries if entry is not rival]
    ours = [by_name[name] for name in OURS if name in by_name]
    if ours and rival["name"] == RIVAL:
        best = max(ours, key=lambda entry: summarised(entry, base)["best"][AESTHETIC]["mean"])
        told.append(target(best, rival, base))
    return told


def against(entry: Entry, rival: Entry, base: Base) -> str:
    """Compares a contestant's best point with the rival's, and says when it reaches that level."""
    gain = difference(entry, rival, base, AESTHETIC)
    right = difference(entry, rival, base, ACCURACY)
    its, other = entry["title"], rival["title"]
    gained = _which(gain, "more than", "less than", "as much, within noise, as")
    shown = _which(right, "more often", "less often", "neither more nor less often beyond noise")
    low, full = (share_of_work(entry, rival, base, level) for level in LEVELS)
    level = f"{LEVELS[0]:.0%} of the best level of {other}'s curve".replace("%", " %", 1)
    if low is None:
        reached = f"it never reaches {level}"
    else:
        rest = "and never all of it" if full is None else f"and all of it with {_times(full)} the work"
        reached = f"it reaches {level} with {_times(low)} the work, {rest}"
    return (
        f"**{its}** gains {gained} {other} at the best points ({_shown(gain)} base deviations) and shows its prompt "
        f"{shown} ({_shown(right)}); {reached}."
    )


def target(entry: Entry, rival: Entry, base: Base) -> str:
    """Says whether the target is met: a fifth of the work, a higher best point, and prompts shown as often."""
    own = gained(rival, base, AESTHETIC)
    if not _is_certain(own) or own.value < 0:
        return f"**Target**: there is none, because {rival['title']} itself gains nothing beyond noise ({_shown(own)})."
    reached = share_of_work(entry, rival, base, 1.0)
    gain = difference(entry, rival, base, AESTHETIC)
    right = difference(entry, rival, base, ACCURACY)
    parts = {
        f"the best level of {rival['title']} with at most a fifth of its work": _at_most(reached, TARGET),
        "a best point that is higher beyond noise": _is_certain(gain) and gain.value > 0,
        f"an accuracy that is not lower by more than {MARGIN}": right.value >= -MARGIN,
    }
    met = "; ".join(name for name, is_met in parts.items() if is_met)
    missed = "; ".join(name for name, is_met in parts.items() if not is_met)
    if not missed:
        return f"**Target**, with {entry['title']}: met ({met})."
    return f"**Target**, with {entry['title']}: not met. Missed: {missed}." + (f" Met: {met}." if met else "")


def share_of_work(entry: Entry, rival: Entry, base: Base, level: float) -> float | None:
    """Returns the work at which a contestant reaches a level, as a share of the rival's own work there.

    Both are read from the mean curves of all seeds.

    Args:
      entry: the contestant.
      rival: the rival.
      base: the measurement of the base.
      level: share of the highest point of the rival's curve.

    Returns:
      The share; None if the contestant never reaches it, or the rival has gained nothing.
    """
    theirs = summarised(rival, base)["curve"]
    height = level * top(theirs)
    reached = work_to_reach(summarised(entry, base)["curve"], height)
    own = work_to_reach(theirs, height)
    return None if reached is None or not own else reached / own


def top(line: Sequence[Mapping[str, Any]]) -> float:
    """Returns the highest mean gain of a curve."""
    return max(row[AESTHETIC]["mean"] for row in line)


def _at_most(share: float | None, most: float) -> bool:
    return share is not None and share <= most


def _is_certain(found: Estimate) -> bool:
    return found.low is not None and (found.low > 0 or found.high < 0)


def _which(found: Estimate, more: str, less: str, equal: str) -> str:
    if not _is_certain(found):
        return equal
    return more if found.value > 0 else less


def _shown(found: Estimate) -> str:
    interval = "" if found.low is None else f", 95 % [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.value:+.3f}{interval}"


def _times(share: float) -> str:
    """Writes a share of the rival's work: ``1/4.2 of`` or ``2.1 times``."""
    return f"1/{1 / share:.1f} of" if 0 < share < 1 else f"{share:.1f} times"
