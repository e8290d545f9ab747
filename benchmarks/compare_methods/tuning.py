"""Which settings a contestant takes: those whose images the labellers like best beside the base's, by their votes.

Nobody has the truth of what is drawn, and the preference model is what some methods learn from and others do not. What
everybody can ask are people. So trials are judged by votes on images of training prompts, drawn by the base and by the
trial from equal noise: of new people from the population that labelled the pairs, or, where the labels are exact, of
the truth, which labelled them. The number of votes and the compute of the trials are the same for all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spo_jax.core.typing import Float
from spo_jax.data.preferences.sources.toy import TIE
from spo_jax.toy import annotators, truth

PEOPLE = 20  # new people who vote
VOTES = 5  # of different people on each pair
_SEED = 9_000

# A function of the base's images, a trial's images and their prompts that returns the share of votes for the trial.
Vote = Callable[[Any, Any, Sequence[str]], float]


def people_vote(base: Any, trial: Any, prompts: Sequence[str]) -> float:
    """Returns the share of votes of new people, drawn as those who labelled the pairs; a tie is half a vote."""
    before = annotators.measures(_shown(base), prompts)
    after = annotators.measures(_shown(trial), prompts)
    people = annotators.draw_annotators(_SEED, before, PEOPLE)
    shares = []
    for turn in range(VOTES):
        who = annotators.assign((_SEED, turn, 0), people, len(prompts))
        shares.append(annotators.judge((_SEED, turn, 1), people, who, after, before)[:, 0].mean())
    return float(np.mean(shares))


def truth_votes(base: Any, trial: Any, prompts: Sequence[str]) -> float:
    """Returns the share of pairs in which the truth prefers the trial; a tie is half of one."""
    one, other = (truth.aesthetic(_shown(images), prompts).astype(np.float64) for images in (trial, base))
    return float(annotators.labels_of(one - other, TIE)[:, 0].mean())


def _shown(images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b h w 3"]:
    """Returns images as people see them, whose values end at -1 and 1."""
    return np.clip(images, -1, 1)


VOTERS: Mapping[str, Vote] = {"people": people_vote, "exact": truth_votes}


def best_trial(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Returns the trial with the most votes; of equal ones the first, which has the lower learning rate.

    Args:
      trials: trials with a ``share``, which is None where a trial failed.

    Returns:
      The trial; None if all failed.
    """
    finished = [trial for trial in trials if trial["share"] is not None]
    return max(finished, key=lambda trial: trial["share"], default=None)
