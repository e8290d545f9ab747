"""Scores of pairs by any rewards: images of several sizes, on all devices or on the host, higher being better."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import Pair
from spo_jax.data.preferences.filtering.rule import read_rule
from spo_jax.prepare import prepare
from spo_jax.rewards.base import DeviceReward
from spo_jax.work import prepare as work
from spo_jax.work.prepare import RewardScorer


class Red(DeviceReward):
    meanings = {"red": "mean of red"}

    def score(self, params, x, features, t):
        return x[..., 0].mean((1, 2))


def on_host(**changes):
    """A reward on the host with two scores, and a third one without a direction."""
    calls = []

    def measure(images, prompts):
        calls.append(len(images))
        length = np.array([len(prompt) for prompt in prompts])
        return {"green": images[..., 1].mean((1, 2)), "length": length, "tone": length * 0.0}

    reward = SimpleNamespace(
        meanings={"green": "mean of green", "length": "of the prompt", "tone": "none"},
        lower_is_better=("length",),
        signs=("tone",),
        check=lambda prompts, size: None,
        measure=measure,
        calls=calls,
    )
    vars(reward).update(changes)
    return reward


def image(red, green, size):
    stream = io.BytesIO()
    Image.new("RGB", size, (red, green, 0)).save(stream, "PNG")
    return stream.getvalue()


def pair(index, size=(4, 4)):
    images = (image(index, 0, size), image(0, index, (4, 4)))
    return Pair(images, "a" * (index + 1), (1.0, 0.0), True, True, ("", ""), 0)


@pytest.fixture
def rewards(monkeypatch):
    """Rewards by the names that rules use for them."""
    found = {"red": Red(), "host": on_host()}
    monkeypatch.setattr(work, "load_reward", lambda spec, context: found[spec])
    return found


def test_images_of_all_sizes_are_scored_on_devices_and_host(rewards):
    scorer = RewardScorer(read_rule(["red=0", "host#length=0", "host#green=0"], []))
    pairs = [pair(index, (4 + index % 2, 6)) for index in range(5)]
    scores = scorer(pairs)  # columns in the order of their names: green, length, red
    to_score = np.arange(5) / 127.5 - 1
    np.testing.assert_allclose(scores[:, 0, 1], to_score, atol=1e-6)
    np.testing.assert_allclose(scores[:, 2, 0], to_score, atol=1e-6)
    np.testing.assert_allclose(scores[:, [0, 2], [0, 1]], -1)
    assert scores[:, 1].tolist() == [[-n, -n] for n in range(1, 6)]  # the length is better if it is lower
    assert sorted(rewards["host"].calls) == [2, 3, 5]  # nothing is filled up on the host
    assert scorer.pairs_at_a_time == 400 and scorer.identity.keys() == {"red", "host"}


def test_images_are_scored_in_one_size_if_one_is_given(rewards):
    seen = []
    rewards["host"] = on_host(check=lambda prompts, size: seen.append(size))
    RewardScorer(read_rule(["host#green=0"], []), resolution=8)([pair(1), pair(2, (5, 9))])
    assert seen == [(8, 8)]


def refuse(prompts, size):
    raise UserError("too small")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "host=0",
            "reward host has several scores: expected the name of one, such as host#green .others: length, tone",
        ),
        ("host#blue=0", "the reward host has no score 'blue': expected green or length or tone"),
        ("red#blue=0", "the reward red has no score 'blue': expected red"),
        ("host#tone=0", "the score tone of host has no better direction"),
    ],
)
def test_a_score_that_a_reward_has_not_is_refused(rewards, condition, message):
    with pytest.raises(UserError, match=message):
        RewardScorer(read_rule([condition], []))


def test_what_a_reward_cannot_score_is_refused(rewards):
    rewards["host"] = on_host(check=refuse)
    scorer = RewardScorer(read_rule(["host#green=0"], []))
    with pytest.raises(UserError, match="--filter: the reward host cannot score these pairs: too small"):
        scorer([pair(1)])


def test_pairs_of_a_users_folder_are_filtered_by_a_reward_of_the_package(tmp_path, capsys):
    for side in ("better", "worse"):
        (tmp_path / "own" / side).mkdir(parents=True)
    for name, better, worse in (("a", 200, 10), ("b", 10, 200)):
        (tmp_path / "own" / "better" / f"{name}.png").write_bytes(image(better, better, (8, 8)))
        (tmp_path / "own" / "worse" / f"{name}.png").write_bytes(image(worse, worse, (8, 8)))
        (tmp_path / "own" / "better" / f"{name}.txt").write_text(f"image {name}")
    how = {"source": str(tmp_path / "own"), "filter_pairs": ["tests.support.brightness=0"]}
    done = prepare("folder", tmp_path / "out", **how)["train"]
    assert done.pairs == 1 and done.filter["decided"]["failed"] == {"tests.support.brightness > 0": 1}
    assert "train: 1 of 2 decided pairs kept; 1 fail tests.support.brightness > 0\n" in capsys.readouterr().out
    assert prepare("folder", tmp_path / "out", **how)["train"] == done._replace(kept=True)
    with pytest.raises(UserError, match="was prepared with filter = .* but now it is 'better than the loser: .* > 1'"):
        prepare("folder", tmp_path / "out", **how | {"filter_pairs": ["tests.support.brightness=1"]})
