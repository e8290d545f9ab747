"""Compares the contestants of an evaluation with the first one, and says what is beyond noise."""

import dataclasses
from collections.abc import Mapping
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from spo_jax.core.statistics import Estimate, Share, estimate, paired_estimate, resample_counts, win_share
from spo_jax.core.typing import Float, Int
from spo_jax.run.verdict import noise_limit, outcomes
from spo_jax.work.evaluate.front import Knee, knees_of
from spo_jax.work.evaluate.result import Evaluation

SEED = 0  # of the resamples, so that equal scores give equal intervals


class Cell(NamedTuple):
    """A score of a contestant.

    Attributes:
      estimate: the protocol's statistic of the score.
      difference: by how much it exceeds that of the first contestant, on the items that both have; None for the first
        contestant itself, and where the two have no item in common.
      outcome: ``better``, ``worse``, ``unchanged`` (within noise) or ``unknown``; for signs ``higher`` and ``lower``
        in place of the first two, because they have no better direction; empty where there is no difference.
      trained: whether the contestant was trained on this score.
    """

    estimate: Estimate
    difference: Estimate | None
    outcome: str
    trained: bool


class GroupValue(NamedTuple):
    """A score of a contestant within a group of prompts.

    Attributes:
      value: the protocol's statistic; where it averages over blocks of prompts, the mean of these averages.
      error: standard error; None for a single prompt.
      deviation: standard deviation of the averages over blocks of prompts, as numpy's ``std``; None without blocks.
      blocks: number of blocks; 0 without.
    """

    value: float
    error: float | None
    deviation: float | None
    blocks: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the tables and the page show.

    Attributes:
      evaluation: what was measured.
      cells: by contestant and score; a score that a contestant does not have is absent.
      groups: by group, contestant and score; empty if prompts have no groups and the protocol no blocks.
      wins: by reward, contestant and opponent: the share of images in which the contestant's is the better one.
      compared: number of differences that were looked at.
      limit: standard errors beyond which a difference counts, so widened that looking at all of them finds none in
        noise; where prompts lack scores, that of the difference with the fewest. Infinite for a single prompt.
      knees: by name of a LoRA that was evaluated at several strengths.
    """

    evaluation: Evaluation
    cells: Mapping[str, Mapping[str, Cell]]
    groups: Mapping[str, Mapping[str, Mapping[str, GroupValue]]]
    wins: Mapping[str, Mapping[str, Mapping[str, Share]]]
    compared: int
    limit: float
    knees: Mapping[str, Knee]

    @property
    def first(self) -> str:
        """Name of the contestant with which the others are compared."""
        return self.evaluation.contestants[0].name

    @property
    def others(self) -> list[str]:
        """Names of the other contestants."""
        return [contestant.name for contestant in self.evaluation.contestants[1:]]

    @property
    def score_names(self) -> list[str]:
        """Names of the scores that at least one contestant has a value of, in the order of the evaluation."""
        return [name for name in self.evaluation.score_names if any(name in cells for cells in self.cells.values())]


def compare(evaluation: Evaluation) -> Comparison:
    """Compares all contestants; prompts are resampled as wholes, because images of one prompt resemble each other."""
    statistic = evaluation.protocol.get("statistic", "mean")
    counts = resample_counts(len(evaluation.prompts), SEED)
    names = [contestant.name for contestant in evaluation.contestants]
    first = evaluation.scores.get(names[0], {})
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    differences: dict[tuple[str, str], Estimate] = {}
    for name in names:
        scores = evaluation.scores.get(name, {})
        for score in (known for known in evaluation.score_names if known in scores):
            found = estimate(scores[score], counts, statistic)
            if found is None:
                continue
            estimates[name][score] = found
            if name != names[0] and score in first:
                difference = paired_estimate(first[score], scores[score], counts, statistic)
                if difference is not None:
                    differences[name, score] = difference
    ends = _outcomes(evaluation, differences)
    cells = {
        name: {
            score: Cell(
                found,
                differences.get((name, score)),
                ends.get((name, score), ""),
                evaluation.is_trained_on(name, score),
            )
            for score, found in estimates[name].items()
        }
        for name in names
    }
    return Comparison(
        evaluation=evaluation,
        cells=cells,
        groups=_groups(evaluation, cells),
        wins={score: _wins(evaluation, score) for score in evaluation.rewards},
        compared=len(differences),
        limit=noise_limit(len(differences), min((each.clusters for each in differences.values()), default=None)),
        knees=knees_of(evaluation),
    )


def _outcomes(
    evaluation: Evaluation, differences: Mapping[tuple[str, str], Estimate]
) -> dict[tuple[str, str], str]:  # fmt: skip
    """Says of each difference whether it is beyond noise; the limit is that of all of them together."""
    found = outcomes(
        {
            key: {
                "change": difference.value,
                "change_se": difference.error,
                "count": difference.clusters,
                "lower_is_better": key[1] in evaluation.lower_is_better and key[1] not in evaluation.signs,
            }
            for key, difference in differences.items()
        }
    )
    as_sign = {"better": "higher", "worse": "lower"}
    return {key: as_sign.get(end, end) if key[1] in evaluation.signs else end for key, end in found.items()}


def _wins(evaluation: Evaluation, score: str) -> dict[str, dict[str, Share]]:
    """Returns the win-rate matrix of a score, without its diagonal."""
    higher_wins = score not in evaluation.lower_is_better
    names = [contestant.name for contestant in evaluation.contestants if score in evaluation.scores[contestant.name]]
    matrix: dict[str, dict[str, Share]] = {name: {} for name in names}
    for name, opponent in permutations(names, 2):
        share = win_share(evaluation.scores[name][score], evaluation.scores[opponent][score], higher_wins)
        if share is not None:
            matrix[name][opponent] = share
    return matrix


def _groups(
    evaluation: Evaluation, cells: Mapping[str, Mapping[str, Cell]]
) -> dict[str, dict[str, dict[str, GroupValue]]]:  # fmt: skip
    """Sums scores up within each group of prompts, as the protocol says."""
    block = int(evaluation.protocol.get("group_size") or 0)
    groups = list(dict.fromkeys(evaluation.groups))
    if not block and not any(groups):
        return {}
    statistic = evaluation.protocol.get("statistic", "mean")
    found = {}
    for group in groups:
        rows = np.flatnonzero([other == group for other in evaluation.groups])
        counts = resample_counts(len(rows), SEED)
        found[group or "all prompts"] = {
            name: {
                score: value
                for score in cells[name]
                if (value := _group_value(evaluation.scores[name][score][rows], block, counts, statistic)) is not None
            }
            for name in cells
        }
    return found


def _group_value(
    values: Float[np.ndarray, "prompts images"], block: int, counts: Int[np.ndarray, "r prompts"], statistic: Any
) -> GroupValue | None:
    """Sums the scores of a group up; None if there are none."""
    whole = estimate(values, counts, statistic)
    if whole is None:
        return None
    if not block or len(values) < block:
        return GroupValue(whole.value, whole.error, None, 0)
    # Blocks are consecutive prompts, and a rest that fills none is left out, as in the original benchmark.
    blocks = len(values) // block
    averages = np.nanmean(values[: blocks * block].reshape(blocks, -1), axis=1, dtype=np.float64)
    return GroupValue(float(averages.mean()), whole.error, float(averages.std()), blocks)
