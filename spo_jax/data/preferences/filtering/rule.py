"""The rule by which pairs stay: how much better a winner has to score, and how little the images of a tie may differ.

A condition is written ``REWARD=GAP``, or ``REWARD#SCORE=GAP`` of a reward with several scores. It has an equals sign
because a shell takes the sign > for the name of a file.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float

DECIDED_FLAG = "--filter"
TIES_FLAG = "--filter-ties"
RESOLUTION_FLAG = "--filter-resolution"

# Of the latent reward models of LPO (arXiv 2502.01051): strategy 2 of their code, but for VQAScore, by which winners
# have to be better as well, and images of a tie differ by less than 0.07.
PUBLISHED = "lpo"
_PUBLISHED_DECIDED = ("aesthetic=-0.5", "clip_score=0")
_PUBLISHED_TIES = ("aesthetic=0.2", "clip_score=0.03")
LEFT_OUT = (
    f"{DECIDED_FLAG}={PUBLISHED} is the published rule without VQAScore, which this package does not compute: with a "
    f"scorer of yours, pass {DECIDED_FLAG}={PUBLISHED},my_rewards.vqa=0 {TIES_FLAG}=my_rewards.vqa=0.07 (or http:URL)"
)
_SCORE = re.compile(r"[\w.@/-]+")


@dataclasses.dataclass(frozen=True)
class Condition:
    """A limit for the gap between the two scores of a pair.

    Attributes:
      reward: name of the reward, as `spo_jax.rewards.load_reward` takes it.
      score: name of the score; empty for the only one of the reward.
      limit: the gap of a decided pair is above it, and that of a tie below it.
    """

    reward: str
    score: str
    limit: float

    @property
    def name(self) -> str:
        """The reward and, if it is named, the score."""
        return f"{self.reward}#{self.score}" if self.score else self.reward


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a pair has to fulfil to stay; without conditions for its kind, it stays.

    Attributes:
      decided: conditions for pairs with a winner: the gap is the winner's score minus the loser's.
      ties: conditions for pairs without one: the gap is the difference of both scores.
      is_short: whether this is the published rule without its third reward.
    """

    decided: tuple[Condition, ...] = ()
    ties: tuple[Condition, ...] = ()
    is_short: bool = False

    @functools.cached_property
    def columns(self) -> list[tuple[str, str]]:
        """Reward and score of every column of the scores, each once, in an order that does not depend on limits."""
        return sorted({(condition.reward, condition.score) for condition in (*self.decided, *self.ties)})

    @property
    def rewards(self) -> list[str]:
        """The rewards, each once."""
        return list(dict.fromkeys(reward for reward, _ in self.columns))

    @functools.cached_property
    def texts(self) -> dict[str, list[str]]:
        """The conditions as formulas, by kind of pair."""
        return {
            "decided": [f"{condition.name} > {condition.limit:g}" for condition in self.decided],
            "ties": [f"|{condition.name}| < {condition.limit:g}" for condition in self.ties],
        }

    def __str__(self) -> str:
        parts = {"decided": "better than the loser", "ties": "ties"}
        return "; ".join(f"{parts[kind]}: {', '.join(texts)}" for kind, texts in self.texts.items() if texts)

    def failed(self, scores: Float[np.ndarray, "c 2"], labels: tuple[float, float]) -> list[str]:
        """Returns the formulas that a pair does not fulfil.

        Args:
          scores: the scores of both images by the columns, of which a higher one is better.
          labels: labels of both images; equal ones are a tie.
        """
        tie = labels[0] == labels[1]
        first, second = scores.astype(np.float64).T
        gaps = np.abs(first - second) if tie else (first - second) * np.sign(labels[0] - labels[1])
        conditions = self.ties if tie else self.decided
        found = []
        for condition, text in zip(conditions, self.texts["ties" if tie else "decided"], strict=True):
            gap = gaps[self.columns.index((condition.reward, condition.score))]
            if not (gap < condition.limit if tie else gap > condition.limit):
                found.append(text)
        return found


def read_rule(decided: Sequence[str], ties: Sequence[str]) -> Rule | None:
    """Reads a rule; returns None if there are no conditions.

    Args:
      decided: conditions ``REWARD=GAP`` for decided pairs; `PUBLISHED` stands for those of the published rule, and for
        its conditions for ties.
      ties: conditions for ties.

    Raises:
      UserError: a condition is not one, or a score has two of them.
    """
    published = PUBLISHED in decided
    own_decided = [text for text in decided if text != PUBLISHED]
    rule = Rule(
        _conditions(DECIDED_FLAG, [*(_PUBLISHED_DECIDED if published else ()), *own_decided]),
        _conditions(TIES_FLAG, [*(_PUBLISHED_TIES if published else ()), *ties]),
        is_short=published and not own_decided,
    )
    return rule if rule.columns else None


def _conditions(flag: str, texts: Sequence[str]) -> tuple[Condition, ...]:
    found: dict[str, Condition] = {}
    for text in texts:
        condition = _condition(flag, text)
        if condition.name in found:
            raise UserError(f"{flag}: {condition.name} has two gaps: expected one")
        found[condition.name] = condition
    return tuple(found.values())


def _condition(flag: str, text: str) -> Condition:
    """Reads a condition, whose reward may have equals signs and number signs in its source."""
    head, _, number = text.strip().rpartition("=")
    reward, sign, score = head.rpartition("#")
    if not sign or not _SCORE.fullmatch(score):
        reward, score = head, ""
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    example = f"REWARD=GAP, such as {'clip_score=0.03' if flag == TIES_FLAG else 'clip_score=0'}"
    if not reward or not math.isfinite(limit):
        other = f", or {PUBLISHED}, the published rule" if flag == DECIDED_FLAG else ""
        raise UserError(f"{flag}: {text!r} is no condition: expected {example}{other}")
    if flag == TIES_FLAG and limit <= 0:
        raise UserError(f"{flag}: {text!r}: no two scores differ by less than {limit:g}: expected a gap above 0")
    return Condition(reward, score, limit)
