"""What was found: means along each run, the points that are chosen from it, and the work that reaches a level."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.compare_methods import voting
from spo_jax.core.statistics import Estimate, paired_estimate, resample_counts, standard_error
from spo_jax.core.typing import Float
from spo_jax.run.guard.guard import Guard, Plan
from spo_jax.run.guard.look import Measured

AESTHETIC = "aesthetic"
ACCURACY = "accuracy/all"
OUT_OF_RANGE = "out_of_range"
DIVERSITY = "diversity"
LAYOUT = "layout"
TERMS = "term/"  # beginning of the names of what the aesthetic is made of
LAYOUT_TERMS = "layout/"  # beginning of the names of what the layout is made of
# By what the guard of configs/toy.py compares two looks: the scores of the reward toy.
GUARDED = (AESTHETIC, "accuracy/colour", "accuracy/shape", ACCURACY, OUT_OF_RANGE)
CHOSEN = ("best", "voted", "final")  # of a run's points: by the guard, by votes, and the last one
_SEED = 0  # of the resamples of prompts

Point = Mapping[str, Any]
Base = Mapping[str, Any]


def rows(point: Point, name: str) -> Float[np.ndarray, "prompts members"]:
    """Returns a score of a point's images, a row for each prompt."""
    if name == DIVERSITY:
        return np.asarray(point[DIVERSITY], np.float64)[:, None]
    return np.asarray(point["scores"][name], np.float64)


def gains(point: Point, base: Base, name: str) -> Float[np.ndarray, "prompts members"]:
    """Returns how much each image gained over the base's of the same noise, in the base's standard deviations.

    The gain of the layout is the mean of those of its terms.
    """
    if name == LAYOUT:
        terms = [term for term in base["scores"] if term.startswith(LAYOUT_TERMS)]
        return np.mean([gains(point, base, term) for term in terms], axis=0)
    before = rows(base, name)
    spread = before.std()
    return (rows(point, name) - before) / (spread if spread > 0 else 1.0)


def work_of(point: Point) -> float:
    """Returns the work of all parts up to a point."""
    return sum(point["work"].values())


def measures(base: Base) -> list[str]:
    """Returns the names of everything that is reported, the terms of the aesthetic last."""
    terms = sorted(name for name in base["scores"] if name.startswith(TERMS))
    layout = [LAYOUT] if any(name.startswith(LAYOUT_TERMS) for name in base["scores"]) else []
    return [AESTHETIC, *layout, ACCURACY, DIVERSITY, OUT_OF_RANGE, *terms]


def value(point: Point, base: Base, name: str) -> float:
    """Returns what is reported of a point: gains of aesthetic, layout and terms, and the mean of everything else."""
    if name in (AESTHETIC, LAYOUT) or name.startswith(TERMS):
        return float(gains(point, base, name).mean())
    return float(rows(point, name).mean())


def guarded_best(points: Sequence[Point], base: Base) -> int:
    """Returns the index of the point that a run's guard keeps, by images that are not reported."""
    looks = [base, *points]

    def measure(number: int, _: None) -> Measured:
        scores = {name: np.ravel(looks[number]["guard"][name]) for name in GUARDED}
        return Measured({}, scores, {}, (OUT_OF_RANGE,))

    images = np.size(base["guard"][AESTHETIC])
    guard = Guard(Plan("warn", 1, len(looks), images, {}), measure)
    guard.begin(None, len(points))
    for number in range(1, len(looks)):
        guard.look(number, None)
    return (guard.kept or len(points)) - 1


def voted_best(points: Sequence[Point], base: Base, labels: str) -> int:
    """Returns the index of the point that wins the most votes beside the base; of equal ones the first.

    The images are those by which the guard chooses, but nobody has to know the truth.

    Args:
      points: the points of a run.
      base: the measurement of the base.
      labels: who labelled the pairs, and votes: a name in `voting.VOTERS`.
    """
    before, *after = ({name: np.ravel(of) for name, of in point["guard"].items()} for point in (base, *points))
    return int(np.argmax([voting.VOTERS[labels](before, measured) for measured in after]))


def chosen_point(run: Mapping[str, Any], base: Base, labels: str, when: str) -> Point:
    """Returns the ``best`` point of a run under the guard, the one that was ``voted``, or the ``final`` one."""
    points = run["points"]
    if when == "best":
        return points[guarded_best(points, base)]
    return points[voted_best(points, base, labels) if when == "voted" else -1]


def summarised(entry: Mapping[str, Any], base: Base) -> dict[str, Any]:
    """Returns an entry with its `CHOSEN` points, as mean and standard error over the seeds, and its curve."""
    names = measures(base)
    chosen = {when: [chosen_point(run, base, entry["labels"], when) for run in entry["runs"]] for when in CHOSEN}
    return {
        **{key: item for key, item in entry.items() if key != "runs"},
        **{when: _over_seeds(points, base, names) for when, points in chosen.items()},
        "curve": curve(entry["runs"], base, names),
        "seeds": [
            {
                "seed": run["seed"],
                "batches": run["batches"],
                "ended": run["ended"],
                "best_step": best["step"],
                "points": [
                    {
                        "step": point["step"],
                        "work": point["work"],
                        "seconds": point["seconds"],
                        **{name: value(point, base, name) for name in names},
                    }
                    for point in run["points"]
                ],
            }
            for run, best in zip(entry["runs"], chosen["best"], strict=True)
        ],
    }


def _over_seeds(points: Sequence[Point], base: Base, names: Sequence[str]) -> dict[str, Any]:
    found = {name: np.asarray([value(point, base, name) for point in points]) for name in names}
    found["work"] = np.asarray([work_of(point) for point in points])
    found["seconds"] = np.asarray([point["seconds"] for point in points])
    over = {name: {"mean": float(of.mean()), "error": standard_error(of)} for name, of in found.items()}
    parts = {part: float(np.mean([point["work"][part] for point in points])) for part in points[0]["work"]}
    return {**over, "parts": parts}


def curve(runs: Sequence[Mapping[str, Any]], base: Base, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the points that all runs have: mean work, and mean, lowest and highest value of each measure."""
    by_step = [{point["step"]: point for point in run["points"]} for run in runs]
    found = []
    for step in sorted(set.intersection(*map(set, by_step))):
        points = [of[step] for of in by_step]
        row: dict[str, Any] = {"work": float(np.mean([work_of(point) for point in points]))}
        for name in names:
            values = [value(point, base, name) for point in points]
            row[name] = {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}
        found.append(row)
    return found


def work_to_reach(line: Sequence[Mapping[str, Any]], level: float, name: str = AESTHETIC) -> float | None:
    """Returns the work at which a curve first reaches a level, between its points by a line; None if it never does.

    The line is one over the logarithm of the work, as the figures have it, except before the first point, where the
    gain rises from 0 with the work itself.
    """
    before_work, before = 0.0, 0.0
    for row in line:
        now_work, now = row["work"], row[name]["mean"]
        if now >= level:
            if now <= before:  # the level is not above 0
                return before_work
            share = min(max((level - before) / (now - before), 0.0), 1.0)
            if before_work == 0:
                return share * now_work
            return before_work * (now_work / before_work) ** share
        before_work, before = now_work, now
    return None


def difference(one: Mapping[str, Any], other: Mapping[str, Any], base: Base, name: str, when: str = "best") -> Estimate:
    """Estimates by how much one entry exceeds another at their best or final points.

    Images of the same prompt and noise are compared, and prompts are what is drawn at random. Seeds that only one of
    them has are left out. Gains are in the base's standard deviations.

    Args:
      one: an entry.
      other: an entry.
      base: the measurement of the base.
      name: name of a measure.
      when: one of `CHOSEN`.
    """
    seeds = sorted({run["seed"] for run in one["runs"]} & {run["seed"] for run in other["runs"]})
    return _paired(*(_of(entry, seeds, base, name, when) for entry in (other, one)))


def gained(entry: Mapping[str, Any], base: Base, name: str) -> Estimate:
    """Estimates the gain of an entry's best points over the base, as `difference` does that over another entry."""
    after = _of(entry, [run["seed"] for run in entry["runs"]], base, name, "best")
    return _paired(np.zeros_like(after), after)


def _paired(before: Float[np.ndarray, "prompts members"], after: Float[np.ndarray, "prompts members"]) -> Estimate:
    found = paired_estimate(before, after, resample_counts(len(before), _SEED))
    return found if found is not None else Estimate(math.nan, None, None, None, 0)


def _of(
    entry: Mapping[str, Any], seeds: Sequence[int], base: Base, name: str, when: str
) -> Float[np.ndarray, "prompts members"]:
    """Returns a measure of an entry's images of these seeds, a row for each prompt."""
    is_gain = name in (AESTHETIC, LAYOUT) or name.startswith(TERMS)
    found = []
    for seed in seeds:
        run = next(run for run in entry["runs"] if run["seed"] == seed)
        point = chosen_point(run, base, entry["labels"], when)
        found.append(gains(point, base, name) if is_gain else rows(point, name))
    return np.concatenate(found, axis=1)
