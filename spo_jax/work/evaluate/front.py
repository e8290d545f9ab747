"""A LoRA at several strengths: the knee among them, and the convex front of one reward against another."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spo_jax.core.typing import Float
from spo_jax.rewards.common import total
from spo_jax.work.evaluate.result import Contestant, Evaluation

DEFINITION = (
    "The gain of a strength is the mean, over the rewards that it was not trained on, of the difference to {first} in "
    "standard deviations of {first}'s scores. The knee is the smallest strength whose gain is within one standard "
    "error of the best one's, prompt by prompt: more strength buys nothing that can be told from noise."
)


class Knee(NamedTuple):
    """Which strength of a LoRA to use.

    Attributes:
      gains: gain of each strength, by contestant, in the order of strengths (see `DEFINITION`).
      best: contestant with the largest gain.
      knee: contestant at the knee; None if no strength is better than the first contestant beyond one standard error.
      rewards: the rewards that the gain averages over.
      held_out: whether these leave out what the LoRA was trained on, as far as that is known.
    """

    gains: Mapping[str, float]
    best: str
    knee: str | None
    rewards: Sequence[str]
    held_out: bool


def strengths_of(evaluation: Evaluation) -> dict[str, list[Contestant]]:
    """Returns the contestants of each LoRA that was evaluated at several strengths, from weak to strong."""
    groups: dict[str, list[Contestant]] = {}
    for contestant in evaluation.contestants[1:]:
        if contestant.strength is not None:
            groups.setdefault(contestant.group, []).append(contestant)
    return {
        group: sorted(members, key=lambda member: member.strength)
        for group, members in groups.items()
        if len(members) > 1
    }


def knees_of(evaluation: Evaluation) -> dict[str, Knee]:
    """Finds the knee of each LoRA that was evaluated at several strengths, if there is a reward to judge it by."""
    found = {group: _knee(evaluation, members) for group, members in strengths_of(evaluation).items()}
    return {group: knee for group, knee in found.items() if knee is not None}


def _knee(evaluation: Evaluation, members: Sequence[Contestant]) -> Knee | None:
    first = evaluation.contestants[0].name
    names = [member.name for member in members]
    rewards = [
        score
        for score in evaluation.rewards
        # The total is made of the others, which would count twice.
        if score != total.NAME and all(score in evaluation.scores.get(name, {}) for name in [first, *names])
    ]
    held_out = [score for score in rewards if not any(evaluation.is_trained_on(name, score) for name in names)]
    judged_by = held_out or rewards
    per_prompt = np.array([_gain(evaluation, name, first, judged_by) for name in names])  # [strength, prompt]
    per_prompt = per_prompt[:, np.isfinite(per_prompt).all(0)]
    if per_prompt.shape[1] < 2:
        return None
    gains = per_prompt.mean(1)
    best = int(gains.argmax())
    # Strength 0 is the first contestant, whose gain is 0 by definition.
    behind = per_prompt[best] - np.vstack([np.zeros_like(per_prompt[0]), per_prompt])
    errors = behind.std(1, ddof=1) / np.sqrt(behind.shape[1])
    smallest = int(np.argmax(behind.mean(1) <= errors))
    return Knee(
        gains=dict(zip(names, map(float, gains), strict=True)),
        best=names[best],
        knee=names[smallest - 1] if smallest else None,
        rewards=judged_by,
        held_out=bool(held_out),
    )


def _gain(evaluation: Evaluation, name: str, first: str, rewards: Sequence[str]) -> Float[np.ndarray, " prompts"]:
    """Returns the gain over the first contestant for each prompt; NaN where a score is missing."""
    gains = []
    for score in rewards:
        base = np.asarray(evaluation.scores[first][score], np.float64)
        spread = np.nanstd(base)
        if spread > 0:
            sign = -1 if score in evaluation.lower_is_better else 1
            gains.append(sign * (evaluation.scores[name][score] - base).mean(1) / spread)
    return np.mean(gains, axis=0) if gains else np.full(len(evaluation.prompts), np.nan)


def convex_front(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Returns the numbers of the points that no mixture of others beats in both coordinates, with ``x`` rising.

    It is the upper right part of the convex hull, by Andrew's monotone chain, from the highest point to the one
    farthest to the right.
    """
    chain: list[int] = []
    for number in sorted(range(len(x)), key=lambda number: (x[number], y[number])):
        while len(chain) > 1 and _turn(x, y, chain[-2], chain[-1], number) >= 0:
            chain.pop()
        if len(chain) == 1 and x[chain[0]] == x[number]:
            chain.pop()
        chain.append(number)
    highest = max(range(len(chain)), key=lambda place: y[chain[place]], default=0)
    return chain[highest:]


def _turn(x: Sequence[float], y: Sequence[float], a: int, b: int, c: int) -> float:
    """Positive where the way from a over b to c turns left, 0 where it is straight."""
    return (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])


def fronts_of(
    evaluation: Evaluation, values: Mapping[str, Mapping[str, float]], across: str, up: str
) -> dict[str, list[str]]:
    """Returns the convex fronts of one reward against another.

    Args:
      evaluation: what was measured.
      values: by contestant and score, the statistic.
      across: the reward on the horizontal axis.
      up: the reward on the vertical axis.

    Returns:
      By name of a LoRA, the contestants on the front over its strengths, the first contestant being strength 0; or, if
      none was evaluated at several, the front over all contestants under "".
    """
    first = evaluation.contestants[0]
    groups = {group: [first, *members] for group, members in strengths_of(evaluation).items()}
    fronts = {}
    for group, members in (groups or {"": list(evaluation.contestants)}).items():
        names = [member.name for member in members if {across, up} <= values.get(member.name, {}).keys()]
        sides = [
            [values[name][score] * (-1 if score in evaluation.lower_is_better else 1) for name in names]
            for score in (across, up)
        ]
        fronts[group] = [names[number] for number in convex_front(*sides)]
    return fronts
