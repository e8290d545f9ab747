"""The verdict on a run: one sentence from its scores, in which a change within the noise is none."""

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any, Literal

from spo_jax.core.words import listed, readable, with_error

Score = Mapping[str, Any]
Outcome = Literal["better", "worse", "unchanged", "unknown"]

NOISE = 2  # standard errors by which a change has to differ from 0, if there is one score
FEW = 10  # comparisons; the standard error of fewer is itself too uncertain to rely on


def noise_limit(scores: int, count: int | None = None) -> float:
    """Returns the standard errors beyond which a change counts: 2 for one score, 2.6 for five, 2.8 for ten.

    Each of many scores may cross two standard errors by chance. The limit is Bonferroni's, so that the probability that
    any of them does is at most that of a single one at `NOISE`. A standard error that was estimated from few items is
    too small as often as not, so the limit is Student's: of ten scores it is 2.9 for 100 items, and 3.8 for ten.

    Args:
      scores: number of changes that are looked at.
      count: number of independent items behind each standard error; None if it is known exactly.

    Returns:
      The limit; infinite for a single item, of which nothing is known.
    """
    tail = NormalDist().cdf(-NOISE) / max(scores, 1)
    if count is None:
        return -NormalDist().inv_cdf(tail)
    if count < 2:
        return math.inf
    from scipy.special import stdtrit  # here, because it takes a while to import

    return float(-stdtrit(count - 1, tail))


def shown_limit(scores: Mapping[Any, Score]) -> str:
    """Writes the limit for these scores; that of the fewest comparisons, if scores differ in their number.

    A score of a single comparison has no limit, and no outcome either.
    """
    counts = [score["count"] for score in scores.values() if (score.get("count") or 0) > 1]
    return limit_text(noise_limit(len(scores), min(counts, default=None)))


def limit_text(limit: float) -> str:
    """Writes a limit to two digits; that of two or three comparisons is large, and written without an exponent."""
    return f"{limit:.2g}" if limit < 99 else f"{limit:.0f}"


def outcomes(scores: Mapping[Any, Score]) -> dict[Any, Outcome]:
    """Says what became of each score.

    Args:
      scores: what `spo_jax.core.statistics.paired_scores` returns: ``change``, its standard error ``change_se`` (None
        for a single comparison), the ``count`` of comparisons and ``lower_is_better``, by name, or by another key.

    Returns:
      By key ``better`` or ``worse``; ``unchanged`` if the change is within the noise (see `noise_limit`); and
      ``unknown`` if change or standard error are missing or not finite.
    """
    return {name: _outcome(score, len(scores)) for name, score in scores.items()}


def _outcome(score: Score, scores: int) -> Outcome:
    change, error = score.get("change"), score.get("change_se")
    if change is None or error is None or not math.isfinite(change) or not math.isfinite(error):
        return "unknown"
    count = score.get("count")
    if count is not None and count < 2:
        return "unknown"
    if abs(change) <= noise_limit(scores, count) * error:
        return "unchanged"
    return "worse" if (change > 0) == bool(score.get("lower_is_better")) else "better"


def verdict(scores: Mapping[str, Score]) -> str:
    """Says in one sentence whether a run has learnt.

    Scores named ``group/series`` are told together. What became worse is said as plainly as what became better.

    Args:
      scores: scores by name; see `outcomes`. A score's ``count`` is the number of comparisons, if it is known.
    """
    if not scores:
        return "Not known: no score was measured both before and after training."
    found = outcomes(scores)
    better, worse, unchanged, unknown = (
        {name: scores[name] for name, what in found.items() if what == kind}
        for kind in ("better", "worse", "unchanged", "unknown")
    )
    if len(unknown) == len(scores):
        changes = listed([f"{readable(name)} {_signed(score)}" for name, score in scores.items()])
        return f"Not known: without a standard error, a change cannot be told from noise ({changes})."
    clauses = []
    if better:
        clauses.append(f"better on {_by(better)}")
    if worse:
        clauses.append(("but " if better else "") + f"worse on {_by(worse)}")
    sentence = ", ".join(clauses)
    if unchanged:
        nothing = f"no change beyond noise in {_names(unchanged)}"
        sentence = f"{sentence}; {nothing}" if sentence else f"no sign of learning: {nothing}"
    if unknown:
        sentence += f"; not known for {_names(unknown)}"
    counts = [score["count"] for score in scores.values() if score.get("count") is not None]
    if counts and min(counts) < FEW:
        sentence += f"; with only {min(counts)} comparisons, this is a hint and not a finding"
    return sentence[0].upper() + sentence[1:] + "."


def _signed(score: Score) -> str:
    return "–" if score.get("change") is None else with_error(score["change"], None, sign="+")


def _by(scores: Mapping[str, Score]) -> str:
    """Lists scores by group with their changes: "aesthetic by 0.115 ± 0.009"; of several in a group, the range."""
    parts = []
    for group, members in _groups(scores).items():
        changes = [abs(scores[name]["change"]) for name in members]
        if len(members) == 1:
            by = with_error(changes[0], scores[members[0]]["change_se"], digits=1)
        else:
            by = f"{min(changes):.2g} to {max(changes):.2g}"
        parts.append(f"{_group_name(group, members)} by {by}")
    return listed(parts)


def _names(scores: Iterable[str]) -> str:
    return listed([_group_name(group, members) for group, members in _groups(scores).items()])


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    return groups


def _group_name(group: str, members: list[str]) -> str:
    """Names a group and which of its series are meant: "accuracy (colour and shape)", "pair accuracy at t = 0, 251"."""
    series = [readable(name.partition("/")[2]) for name in members]
    if series == [""]:
        return readable(group)
    if all(name.startswith("t = ") for name in series):
        return f"{readable(group)} at t = {listed([name.removeprefix('t = ') for name in series])}"
    return f"{readable(group)} ({listed(series)})"
