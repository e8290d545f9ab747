"""Annotators agree as often as people do, and their labels follow what they look at.

The figures to match are in docs/data.md. One standard error of each is about 0.01.
"""

import numpy as np
import pytest

from spo_jax.data.preferences.sources.toy import TIE
from spo_jax.toy import annotators, truth, world
from spo_jax.toy.annotators import SHARES, Annotators, agreement, draw_annotators, judge, labels_of

PAIRS = 3000
FLAWS = [name for name in world.FACTORS if name in ("edge_width", "dullness", "raggedness", "mottle", "grain")]
FIGURES = {
    "ties": 0.12,
    "two annotators agree": 0.70,
    "the label agrees with the truth": 0.69,
}


def rows(measured, which):
    return {name: values[which] for name, values in measured.items()}


@pytest.fixture(scope="module")
def seen():
    """Pairs like those of models: some images are worse in everything, and some show another prompt.

    Every image is in several pairs.
    """
    rng = np.random.default_rng(0)
    prompts = [str(prompt) for prompt in rng.choice(world.TRAIN_PROMPTS[::6], 500)]
    shown = np.where(rng.random(500) < 0.25, rng.choice(world.PROMPTS, 500), prompts)
    factors = world.sample_factors(rng, 500)
    badness = rng.random(500)
    for name in FLAWS:
        low, high = world.FACTORS[name]
        factors[name] = (0.4 * factors[name] + 0.6 * (low + (high - low) * badness)).astype(np.float32)
    images = world.render(rng, [str(prompt) for prompt in shown], factors)
    measured = annotators.measures(images, prompts)
    first = rng.integers(500, size=PAIRS)
    names = np.array(prompts)
    second = np.array([rng.choice(np.flatnonzero((names == names[one]) & (np.arange(500) != one))) for one in first])
    aesthetic = truth.aesthetic(images, prompts)
    exact = labels_of(aesthetic[first] - aesthetic[second], TIE)
    return measured, rows(measured, first), rows(measured, second), exact


def test_annotators_agree_as_people_do(seen):
    measured, first, second, exact = seen
    people = draw_annotators(0, measured)
    labels = judge(2, people, annotators.assign(1, people, PAIRS), first, second)
    found = {name: float(v.mean()) for name, v in annotators.figures(3, people, first, second, labels, exact).items()}
    for name, value in FIGURES.items():
        assert abs(found[name] - value) < 0.035, (name, found)
    assert found["an annotator agrees with himself or herself"] > found["two annotators agree"] + 0.03
    np.testing.assert_array_equal(labels.sum(1), 1)


def test_groups_have_their_shares_of_a_judgement(seen):
    """On average over annotators; nobody's taste is the average's."""
    measured, *_ = seen
    people = draw_annotators(0, measured, 2000)
    shares = {}
    for group in ("term", "layout", "accuracy"):
        own = [place for place, name in enumerate(people.names) if name.startswith(f"{group}/")]
        values = np.stack([measured[people.names[place]] for place in own], axis=1)
        shares[group] = (values @ people.weights[:, own].T).var(0)
    shares["noise"] = people.noise**2
    for group, share in SHARES.items():
        assert abs(shares[group].mean() - share) < 0.02
        assert shares[group].std() > 0.05
    np.testing.assert_allclose(sum(shares.values()), 1, rtol=1e-4)


def test_a_judgement_is_the_sign_of_the_difference_or_a_tie():
    people = Annotators(
        ("term/crisp", "accuracy/shape"), np.array([[2.0, 0.0], [0.0, 1.0]]), np.zeros(2), np.array([0.5, 0.5])
    )

    def measures(crisp, shape):
        return {"term/crisp": np.array(crisp), "accuracy/shape": np.array(shape)}

    first = measures([0.9, 0.9, 0.5, 0.1], [0.0, 0.0, 1.0, 1.0])
    second = measures([0.1, 0.1, 0.4, 0.9], [1.0, 1.0, 1.0, 1.0])
    labels = judge(0, people, np.array([0, 1, 0, 0]), first, second)
    assert labels.tolist() == [[1, 0], [0, 1], [0.5, 0.5], [0, 1]]


def test_noise_turns_judgements_and_every_judgement_has_its_own(seen):
    _, first, second, _ = seen
    names = tuple(first)
    people = Annotators(names, np.zeros((1, len(names))), np.ones(1), np.full(1, 0.1))
    who = np.zeros(PAIRS, int)
    labels, again, other = (judge(seed, people, who, first, second) for seed in (0, 0, 1))
    np.testing.assert_array_equal(labels, again)
    assert abs(agreement(labels, other).mean() - 0.5) < 0.03


def test_half_a_point_where_one_of_two_says_tie():
    labels = {"first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5)}
    points = [("first", "first", 1), ("first", "second", 0), ("first", "tie", 0.5), ("tie", "tie", 1)]
    for one, other, expected in points:
        ours, theirs = (np.array([labels[name]], np.float32) for name in (one, other))
        assert agreement(ours, theirs).tolist() == agreement(theirs, ours).tolist() == [expected]
