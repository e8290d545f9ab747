"""Which pairs are trained on, which of their images is the winner, and with what weight: from people, or from a reward.

SmPO smooths labels by a reward: p is the softmax of the two scores, mapped to u in [0, 1] over the range
of the reward, and a pair weighs (2 p - 1) γ = γ tanh((u_w - u_l) / 2). People's labels are not read.
"""

from typing import NamedTuple

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Bool, Float, Int
from spo_jax.data.preferences.format import Preferences
from spo_jax.methods.diffusion_dpo.data import decided
from spo_jax.methods.diffusion_dpo.settings import DPOSettings


class Labels(NamedTuple):
    """The labels of all pairs of a split.

    Attributes:
      rows: positions of the pairs to train on.
      second_wins: whether the second image of a pair is the winner.
      weight: factor of the pair's margin; 1 for people's labels.
    """

    rows: Int[np.ndarray, " m"]
    second_wins: Bool[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]


def peoples_labels(pairs: Preferences) -> Labels:
    """Takes the labels of the data, and leaves out ties and pairs without a label."""
    weight = np.ones(len(pairs), np.float32)
    return Labels(np.flatnonzero(decided(pairs)).astype(np.int32), pairs.labels[:, 1] > pairs.labels[:, 0], weight)


def smoothed_labels(scores: Float[np.ndarray, "n 2"], settings: DPOSettings) -> Labels:
    """Makes SmPO's labels; a pair with two equal scores has the weight 0, and teaches nothing.

    Args:
      scores: the reward's score of both images.
      settings: γ and the scores that are mapped to 0 and 1.

    Raises:
      UserError: all scores are equal.
    """
    low, high = settings.score_min, settings.score_max
    if low == high:
        low, high = float(scores.min()), float(scores.max())
    if low == high:
        raise UserError(f"config field dpo.reward = {settings.reward!r}: every image has the score {low:g}")
    second_wins = scores[:, 1] > scores[:, 0]
    weight = smoothed_weights(scores.max(1), scores.min(1), low, high, settings.gamma)
    return Labels(np.arange(len(scores), dtype=np.int32), second_wins, weight)


def smoothed_weights(
    win: Float[np.ndarray, " n"], lose: Float[np.ndarray, " n"], low: float, high: float, gamma: float
) -> Float[np.ndarray, " n"]:
    """Computes (2 p - 1) γ from the scores of winners and losers, as γ tanh((u_w - u_l) / 2).

    Args:
      win: scores of the winners.
      lose: scores of the losers.
      low: score that is mapped to 0.
      high: score that is mapped to 1.
      gamma: γ.
    """
    gap = (np.asarray(win, np.float64) - np.asarray(lose, np.float64)) / (high - low)
    return (gamma * np.tanh(gap / 2)).astype(np.float32)
