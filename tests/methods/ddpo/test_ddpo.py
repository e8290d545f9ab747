"""DDPO: its history of rewards, its settings, and runs on models with random weights."""

import dataclasses
from collections import deque

import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods import load_method
from spo_jax.methods.base import Method, Run
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.trajectory_checks import check
from spo_jax.methods.common.trajectory_run import numbered
from spo_jax.methods.ddpo.advantages import advantages, empty_history, statistics
from spo_jax.methods.ddpo.objective import ddpo_loss
from spo_jax.methods.ddpo.settings import DDPOSettings, DDPOTrainSettings
from tests.e2e.micro import write_micro
from tests.methods.runs import TINY_EVAL, assert_devices_agree, assert_resumes_to_the_bit, train


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Three batches of two prompts with two images each, and two passes of two updates."""
    return DDPOTrainSettings(
        method="ddpo",
        model=str(write_micro(tmp_path_factory.mktemp("models") / "micro")),
        prompts_per_batch=2,
        max_batches=3,
        optimizer=OptimizerSettings(learning_rate=1e-3),
        eval=TINY_EVAL,
        ddpo=DDPOSettings(
            reward="tests.e2e.redness",
            num_steps=3,
            samples_per_prompt=2,
            train_batch_size=2,
            train_chunk=4,
            timestep_fraction=0.7,
            passes=2,
            buffer_size=3,
            min_count=3,
        ),
    )


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_history_is_a_queue_for_every_prompt(size):
    """Against Python's own queue; a batch may hold more images of a prompt than are kept."""
    rng = np.random.default_rng(size)
    history = empty_history(4, size)
    queues = [deque(maxlen=size) for _ in range(4)]
    for _ in range(5):
        prompt, rewards = rng.integers(0, 3, 7), rng.normal(size=7).astype(np.float32)
        history, found, own = advantages(history, jnp.asarray(prompt), jnp.asarray(rewards), 2)
        for index, reward in zip(prompt, rewards, strict=True):
            queues[index].append(reward)
        for number, queue in enumerate(queues):
            ring = np.asarray(history.rewards[number])[: int(history.filled[number])]
            assert sorted(ring) == pytest.approx(sorted(queue))
        of = [np.asarray(queues[index]) if len(queues[index]) >= 2 else rewards for index in prompt]
        expected = [(r - values.mean()) / (values.std() + 1e-6) for r, values in zip(rewards, of, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert own.tolist() == [len(queues[index]) >= 2 for index in prompt]
    mean, std, filled = statistics(history, jnp.asarray([3]))  # a prompt that never came
    assert (mean[0], std[0], filled[0]) == (0, 0, 0)


def test_a_text_has_one_history_wherever_it_stands():
    assert numbered(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 0, 3, 1]


def test_only_steps_that_went_the_right_way_are_clipped():
    ratio = jnp.asarray([1.2, 0.8, 1.2, 0.8])
    advantage = jnp.asarray([1.0, 1.0, -1.0, -20.0])
    out = ddpo_loss(jnp.log(ratio), jnp.zeros(4), advantage, clip_range=0.1, adv_clip_max=5.0)
    np.testing.assert_allclose(out.loss, [-1.1, -0.8, 1.2, 4.5], rtol=1e-6)


def test_a_run_resumes_to_the_bit_and_learns_what_its_rows_say(settings, tmp_path):
    trained = assert_resumes_to_the_bit(settings, tmp_path)
    assert isinstance(trained.run, Run) and isinstance(load_method("ddpo"), Method)
    for row in trained.rows:
        assert row["train_batches"] == 4
        assert row["first_ratio_error"] < 1e-5  # also in later batches, whose policy drew them
        assert row["reward_spread"] > 0 and np.isfinite(row["approx_kl"])
        assert {name.partition("/")[0] for name in row} <= set(trained.run.charts)
    assert trained.rows[0]["own_statistics"] == 0
    assert int(trained.state.step) == 12
    counts = trained.state.history.count
    assert counts.sum() == 3 * 4 and trained.state.history.rewards.shape == (46, 3)


@pytest.mark.slow
def test_eight_devices_are_one(settings, tmp_path):
    own = dataclasses.replace(settings.ddpo, train_batch_size=8, clip_range=0.5)
    assert_devices_agree(dataclasses.replace(settings, prompts_per_batch=8, ddpo=own), tmp_path)


@pytest.mark.slow
def test_a_reward_on_the_host_gives_the_same_run(settings, tmp_path):
    """The images go to the host between the programs, and nothing else changes but rounding."""
    on_host = dataclasses.replace(settings.ddpo, reward="tests.methods.redness_on_host", score="redness")
    device = train(settings, tmp_path / "device")
    host = train(dataclasses.replace(settings, ddpo=on_host), tmp_path / "host")
    for one, other in zip(device.rows, host.rows, strict=True):
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-5)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_batch_size": 3}, "train_batch_size = 3: expected a number that divides the 80 images of a batch"),
        ({"reward": "spm, toy"}, "ddpo.reward = 'spm, toy': expected one reward"),
        ({"reward": " "}, "ddpo.reward = ' ': expected the name of a reward"),
        ({"min_count": 20}, "ddpo.min_count = 20: expected at most the 16 rewards"),
        ({"eta": 0.0}, "ddpo.eta = 0.0"),
        ({"reward": "toys"}, "ddpo.reward"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError) as caught:
        check(DDPOTrainSettings(ddpo=DDPOSettings(**fields)))
    assert message in str(caught.value)


def test_the_guard_may_not_look_at_the_reward():
    settings = DDPOTrainSettings(ddpo=DDPOSettings(reward="toy"))
    check(settings)  # a reward on the host is allowed
    guarded = dataclasses.replace(settings.eval, guard="warn", guard_rewards="toy")
    with pytest.raises(UserError, match="eval.guard_rewards names 'toy', by which the run is judged"):
        check(dataclasses.replace(settings, eval=guarded))
