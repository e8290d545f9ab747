"""A weighted sum of rewards that are computed on the devices, as one reward: ``sum:1*pickscore+0.5*aesthetic``."""

import dataclasses
import math
import re

from spo_jax.core.errors import UserError
from spo_jax.rewards import check_direction, check_reward, load_reward, no_judge
from spo_jax.rewards.common.protocol import Context, Reward

READS = ""  # what its terms read
# A plus sign ends a term only in front of the next weight, so that the path of a source may hold one.
_BETWEEN = re.compile(r"\+(?=\s*-?[\d.]+(?:[eE]-?\d+)?\s*\*)")


def load(source: str, context: Context) -> Reward:
    """Loads every reward of the sum.

    Args:
      source: terms ``WEIGHT*REWARD`` with plus signs between them; a weight may be negative.
      context: where and how to load them. Its options reach none of them, so a term names its own source.

    Raises:
      UserError: a term is not one, its reward cannot be loaded or is computed on the host, or a lower score of it is
        better and its weight is positive.
    """
    from spo_jax.rewards.base import DeviceReward  # these import jax, which `check` does without
    from spo_jax.rewards.common.weighted_sum import WeightedSum

    terms = []
    for weight, spec in read_terms(source, context):
        reward = load_reward(spec, _of_term(context))
        if not isinstance(reward, DeviceReward):
            raise no_judge(spec, context.where)
        check_direction(spec, reward, weight, context.where)
        terms.append((weight, reward))
    return WeightedSum(terms, context.where)


def check(source: str, context: Context) -> None:
    """Refuses terms that are none, and rewards that cannot be used, without the network."""
    for _, spec in read_terms(source, context):
        check_reward(spec, _of_term(context), judges=True)


def read_terms(source: str, context: Context) -> list[tuple[float, str]]:
    """Returns the weight and the reward of every term.

    Raises:
      UserError: a term is not ``WEIGHT*REWARD``, or there is only one, which is no sum unless its weight is negative.
    """
    parts = [part.partition("*") for part in _BETWEEN.split(source)]
    try:
        terms = [(float(weight), spec.strip()) for weight, _, spec in parts]
    except ValueError:
        terms = []
    alone = len(terms) < 2 and not any(weight < 0 for weight, _ in terms)
    if alone or not all(spec and math.isfinite(weight) for weight, spec in terms):
        raise UserError(
            f"{context.where} = 'sum:{source}': expected weights and rewards, such as sum:1*pickscore+0.5*aesthetic"
        )
    return terms


def _of_term(context: Context) -> Context:
    return dataclasses.replace(context, options={})
