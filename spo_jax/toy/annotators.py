"""Simulated annotators of pairs of toy images, who disagree as people do.

What people prefer is not the truth of the toy world. An annotator's utility of an image mixes how well it is drawn (the
terms of `truth.aesthetic`), its layout (a centred, large and upright shape) and whether it shows the prompt, each with
weights of the annotator's own; every judgement adds noise, and differences below a margin of the annotator's own are a
tie. As in Pick-a-Pic, a pair is judged by one annotator. The module depends on numpy alone.

For an annotator a and the measures m of two images of a prompt:

  d = (w_a · m₁ - w_a · m₂) / √2 + σ_a ε          the label is a tie if |d| < margin_a, otherwise the sign of d

The weights w_a follow from shares: the terms, the layout, the accuracy and the noise each have a share in the variance
of d, drawn around `SHARES`, whatever the scales of the measures are. d therefore has a variance of about 1.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from spo_jax.toy import truth

COUNT = 200  # annotators
# Shares in the variance of a judgement, on average over annotators. They are chosen so that two annotators agree as
# often as people do, and the labels agree with the truth as often as two annotators with each other: see docs/data.md.
SHARES = {"term": 0.32, "layout": 0.28, "accuracy": 0.10, "noise": 0.30}
_ALIKE = 8.0  # concentration of the annotators' shares around these; the higher, the more alike they are
_OWN_TASTE = 0.8  # concentration of their weights within a group
_MARGIN = (0.08, 0.20)  # range of their margins; d has a variance of 1
_VISIBLE = 1e-3  # standard deviation below which a measure is the same for all images, and nobody judges by it

# Measures of images by group and name, such as ``layout/centred``. More is better in all of them.
Measures = Mapping[str, Float[np.ndarray, " b"]]
Seed = int | Sequence[int] | np.random.SeedSequence
Labels = Float[np.ndarray, "n 2"]


def measures(images: Float[np.ndarray, "b h w 3"], prompts: Collection[str]) -> Measures:
    """Measures everything that annotators look at.

    Args:
      images: values in [-1, 1].
      prompts: the prompts of the images.

    Raises:
      UserError: a prompt is not a caption of the toy world.
    """
    right = truth.accuracy(images, prompts)
    shown = {f"accuracy/{name}": right[name].astype(np.float32) for name in ("colour", "shape")}
    return truth.measure_terms(images) | shown


class Annotators(NamedTuple):
    """People by number.

    Attributes:
      names: names of the k measures.
      weights: utility of one unit of each measure.
      noise: standard deviation of the noise of a judgement.
      margin: difference below which two images are a tie.
    """

    names: tuple[str, ...]
    weights: Float[np.ndarray, "a k"]
    noise: Float[np.ndarray, " a"]
    margin: Float[np.ndarray, " a"]


def draw_annotators(seed: Seed, seen: Measures, count: int = COUNT) -> Annotators:
    """Draws annotators, for whom the spread of ``seen`` is what images differ by.

    Args:
      seed: seed of the annotators.
      seen: measures of a sample of the images that they will judge.
      count: number of annotators.
    """
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([_ALIKE * share for share in SHARES.values()], count)  # [a groups]
    weights = np.zeros((count, len(seen)))
    for group, share in zip(SHARES, shares.T, strict=True):
        places = [place for place, name in enumerate(seen) if name.startswith(f"{group}/")]
        if not places:  # noise
            continue
        values = np.stack([*seen.values()], axis=1)[:, places]  # [b k]
        spread = values.std(0)
        own = rng.gamma(_OWN_TASTE, size=(count, len(places)))
        own = np.where(spread > _VISIBLE, own / np.maximum(spread, _VISIBLE), 0)
        mixed = (values @ own.T).std(0)  # [a]
        weights[:, places] = own * (np.sqrt(share) / np.maximum(mixed, _VISIBLE))[:, None]
    noise = np.sqrt(shares[:, list(SHARES).index("noise")])
    return Annotators(tuple(seen), weights, noise, rng.uniform(*_MARGIN, count))


def assign(seed: Seed, annotators: Annotators, pairs: int) -> Int[np.ndarray, " n"]:
    """Draws the number of the annotator who judges each pair."""
    return np.random.default_rng(seed).integers(len(annotators.noise), size=pairs)


def judge(seed: Seed, annotators: Annotators, who: Int[np.ndarray, " n"], first: Measures, second: Measures) -> Labels:
    """Labels pairs of images of the same prompt, each by one annotator.

    Args:
      seed: seed of the noise of these judgements.
      annotators: all annotators.
      who: the number of the annotator of each pair.
      first: measures of the first images.
      second: measures of the second images.

    Returns:
      (1, 0), (0, 1), or (½, ½) for a tie, for each pair.
    """
    difference = np.stack([first[name] - second[name] for name in annotators.names], axis=1)  # [n k]
    noise = np.random.default_rng(seed).standard_normal(len(who))
    d = (difference * annotators.weights[who]).sum(1) / np.sqrt(2) + annotators.noise[who] * noise
    return labels_of(d, annotators.margin[who])


def labels_of(difference: Float[np.ndarray, " n"], margin: float | Float[np.ndarray, " n"]) -> Labels:
    """Returns (1, 0) where the first of two utilities leads by ``margin``, (0, 1) where the other does, else (½, ½)."""
    first = np.where(np.abs(difference) < margin, 0.5, difference > 0).astype(np.float32)
    return np.stack([first, 1 - first], axis=1)


# What is compared with people


def agreement(ours: Labels, theirs: Labels) -> Float[np.ndarray, " n"]:
    """Returns 1 where both say the same, ½ where one of them alone says tie, and 0 where they contradict each other.

    This is how Pick-a-Pic counts: there, too, two ties agree.
    """
    return 1 - np.abs(ours[:, 0] - theirs[:, 0])


def is_tie(labels: Labels) -> Float[np.ndarray, " n"]:
    """Returns 1 for ties and 0 for decided pairs."""
    return (labels[:, 0] == 0.5).astype(np.float32)


def figures(
    seed: Seed,
    annotators: Annotators,
    first: Measures,
    second: Measures,
    labels: Labels,
    exact: Labels,
) -> dict[str, Float[np.ndarray, "..."]]:
    """Compares annotators with each other, with themselves and with the truth, on the same pairs.

    Args:
      seed: seed of who else judges a pair, and of the noise of these judgements.
      annotators: all annotators.
      first: measures of the first images.
      second: measures of the second images.
      labels: the labels of the annotator of each pair.
      exact: labels by the truth.

    Returns:
      The contribution of each pair by name.
    """
    count = len(labels)
    own, gaps, *times = np.random.SeedSequence(seed).spawn(5)
    one = assign(own, annotators, count)
    # Somebody else: one of the others, with equal chances.
    gap = np.random.default_rng(gaps).integers(1, len(annotators.noise), count)
    other = (one + gap) % len(annotators.noise)
    by_one, again = (judge(time, annotators, one, first, second) for time in times[:2])
    by_other = judge(times[2], annotators, other, first, second)
    decided = (is_tie(by_one) == 0) & (is_tie(by_other) == 0)
    return {
        "ties": is_tie(labels),
        "ties by the truth": is_tie(exact),
        "two annotators agree": agreement(by_one, by_other),
        "two annotators agree, where neither says tie": agreement(by_one, by_other)[decided],
        "an annotator agrees with himself or herself": agreement(by_one, again),
        "the label agrees with the truth": agreement(labels, exact),
    }
