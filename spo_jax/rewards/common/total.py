"""One score out of several rewards: the weighted sum of their scores, each normalised by the base model's images.

Rewards have different units: PickScore moves by tenths around 20, ImageReward by tenths around 0, an aesthetic score by
tenths around 5. A score s counts as z = (s - m) / d, where m and d are its mean and standard deviation over the base
model's images of the same prompts. So a weight says how much one standard deviation of that reward is worth, and the
total of the base model is 0. m and d are fitted once, before anything else is measured, and stay: the totals of a whole
run, and of everything that is compared with the same base images, are on one scale.

A score that improves by falling counts with the other sign. A score that is the same for every base image has no
deviation; its bare difference to the mean counts then (d = 1), and a warning says so. Of a reward with several scores,
the first one counts, as the reward's ``meanings`` list them.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float
from spo_jax.core.words import counted

NAME = "total"  # of the score
# Deviations below this share of the largest value are rounding.
_ROUNDING = 1e-6


def read_weights(text: str, rewards: Sequence[str], where: str) -> tuple[float, ...]:
    """Reads the weights of rewards.

    Args:
      text: numbers, separated by commas; empty if no total is wanted.
      rewards: names of the rewards, in the same order.
      where: flag or config field that holds the weights, as messages call it.

    Returns:
      A weight for each reward; empty if ``text`` is.

    Raises:
      UserError: a weight is not a finite number, all are 0, or there are more or fewer weights than rewards.
    """
    if not text.strip():
        return ()
    parts = [part.strip() for part in text.split(",")]
    try:
        weights = tuple(float(part) for part in parts)
    except ValueError:
        weights = (math.nan,)
    if not all(map(math.isfinite, weights)):
        raise UserError(f"{where} = {text!r}: expected numbers with commas between them, such as 1,0.5")
    if len(weights) != len(rewards):
        raise UserError(
            f"{where} = {text!r}: {counted(len(weights), 'weight')} for {counted(len(rewards), 'reward')} "
            f"({', '.join(rewards)}); expected one for each"
        )
    if not any(weights):
        raise UserError(f"{where} = {text!r}: expected at least one weight that is not 0")
    return weights


@runtime_checkable
class Named(Protocol):
    """What is known of a reward before its weights are read; a `Reward` is one."""

    meanings: Mapping[str, str]
    lower_is_better: Sequence[str]


def signed_weights(rewards: Sequence[Named], weights: Sequence[float]) -> dict[str, float]:
    """Returns the weight of each reward's first score by its name, negated where a lower score is better.

    Args:
      rewards: the rewards.
      weights: a weight for each of them, or none at all, which gives an empty dict.

    Raises:
      UserError: a reward has a score with the name of the sum.
    """
    if not weights:
        return {}
    if any(NAME in reward.meanings for reward in rewards):
        raise UserError(f"a reward has a score {NAME}, which is the name of the weighted sum: evaluate without weights")
    signed = {}
    for reward, weight in zip(rewards, weights, strict=True):
        name = next(iter(reward.meanings))
        signed[name] = -weight if name in reward.lower_is_better else weight
    return signed


def meaning(weights: Mapping[str, float]) -> str:
    """Says in a phrase what the total of these weights is; ``weights`` are those of `signed_weights`."""
    return f"{spell_sum(weights.items())}, each in standard deviations from its mean over the base model's images"


def spell_sum(terms: Iterable[tuple[str, float]]) -> str:
    """Writes names of scores and their weights as a sum, such as ``1 × pickscore - 0.5 × redness``."""
    first, *others = (f"{'-' if weight < 0 else '+'} {abs(weight):g} × {name}" for name, weight in terms)
    return " ".join([first.removeprefix("+ "), *others])


@dataclasses.dataclass(frozen=True)
class Total:
    """A weighted sum of normalised scores.

    Attributes:
      weights: weight of each score by name, as `signed_weights` returns them.
      means: mean of each score over the base model's images.
      deviations: standard deviation of each over these images; 1 where it is 0.
    """

    weights: Mapping[str, float]
    means: Mapping[str, float]
    deviations: Mapping[str, float]

    def __call__(self, scores: Mapping[str, Float[np.ndarray, "*n"]]) -> Float[np.ndarray, "*n"]:
        """Returns the totals of images with these scores; other scores do not matter."""
        return sum(
            weight * (np.asarray(scores[name], np.float64) - self.means[name]) / self.deviations[name]
            for name, weight in self.weights.items()
        )


def fit_total(weights: Mapping[str, float], base: Mapping[str, Float[np.ndarray, "*n"]]) -> Total:
    """Fits the normalisation to the scores of the base model's images.

    Args:
      weights: weights by name of the score, as `signed_weights` returns them.
      base: scores of the base model's images by name, all finite; an array of any shape with an image for each entry.
    """
    means, deviations = {}, {}
    for name in weights:
        values = np.asarray(base[name], np.float64)
        means[name] = float(values.mean())
        deviation = float(values.std())
        if deviation <= _ROUNDING * np.abs(values).max():
            logging.warning(
                "%s is the same for all %d images of the base model; the total takes its bare difference",
                name,
                values.size,
            )
            deviation = 1.0
        deviations[name] = deviation
    return Total(weights, means, deviations)
