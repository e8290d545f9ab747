"""Votes on images beside the base's, drawn from equal noise: what everybody can ask for who does not have the truth.

Where people labelled the pairs, new people of the same population vote. Where the labels are exact, the truth votes,
because it labelled them. The number of votes is the same for all.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spo_jax.core.typing import Float
from spo_jax.data.preferences.sources.toy import TIE
from spo_jax.toy import annotators, truth

PEOPLE = 20  # new people who vote
VOTES = 5  # of different people on each pair
_SEED = 9_000
_AESTHETIC = "aesthetic"  # by which the truth votes

# What is measured of images by name; everything that people look at, and the aesthetic.
Measures = Mapping[str, Float[np.ndarray, " b"]]
# A function of the measures of the base's images and of others that returns the share of votes for the others.
Vote = Callable[[Measures, Measures], float]


def measures(images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Measures:
    """Measures everything that votes depend on, of images as people see them, whose values end at -1 and 1."""
    shown = np.clip(images, -1, 1)
    return annotators.measures(shown, prompts) | {_AESTHETIC: truth.aesthetic(shown, prompts)}


def people_vote(before: Measures, after: Measures) -> float:
    """Returns the share of votes of new people, drawn as those who labelled the pairs; a tie is half a vote."""
    before, after = _seen(before), _seen(after)
    pairs = len(next(iter(before.values())))
    people = annotators.draw_annotators(_SEED, before, PEOPLE)
    shares = []
    for turn in range(VOTES):
        who = annotators.assign((_SEED, turn, 0), people, pairs)
        shares.append(annotators.judge((_SEED, turn, 1), people, who, after, before)[:, 0].mean())
    return float(np.mean(shares))


def truth_votes(before: Measures, after: Measures) -> float:
    """Returns the share of pairs in which the truth prefers the later image; a tie is half of one."""
    gained = np.asarray(after[_AESTHETIC], np.float64) - np.asarray(before[_AESTHETIC], np.float64)
    return float(annotators.labels_of(gained, TIE)[:, 0].mean())


def _seen(measured: Measures) -> Measures:
    """Returns what people look at: terms, layout, and whether colour and shape are those of the prompt."""
    groups = tuple(f"{group}/" for group in annotators.SHARES)
    return {name: of for name, of in measured.items() if name.startswith(groups) and name != "accuracy/all"}


VOTERS: Mapping[str, Vote] = {"people": people_vote, "exact": truth_votes}
