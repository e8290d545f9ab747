"""D3PO: preferences, its settings, and runs on models with random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods import load_method
from spo_jax.methods.base import Method, Run
from spo_jax.methods.common.judged import is_judge, judges
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.trajectory_checks import check
from spo_jax.methods.d3po.objective import d3po_loss, preferences
from spo_jax.methods.d3po.settings import D3POSettings, D3POTrainSettings
from tests.e2e.micro import write_micro
from tests.methods.runs import TINY_EVAL, assert_devices_agree, assert_resumes_to_the_bit, train


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Two batches of four prompts, and two updates of two pairs each."""
    return D3POTrainSettings(
        method="d3po",
        model=str(write_micro(tmp_path_factory.mktemp("models") / "micro")),
        prompts_per_batch=4,
        max_batches=2,
        optimizer=OptimizerSettings(learning_rate=1e-3),
        eval=TINY_EVAL,
        d3po=D3POSettings(reward="tests.e2e.redness", num_steps=3, train_batch_size=2, train_chunk=4),
    )


def test_equal_scores_are_a_tie_and_dominance_decides_between_several():
    scores = jnp.asarray([[[1.0, 1], [0, 1]], [[0, 0], [1, 1]], [[1, 0], [0, 1]], [[2, 2], [2, 2]]])
    assert preferences(scores).tolist() == [[1, -1], [-1, 1], [0, 0], [0, 0]]
    assert preferences(scores[..., :1]).tolist() == [[1, -1], [-1, 1], [1, -1], [0, 0]]


def test_a_tie_and_a_clipped_ratio_give_no_gradient():
    preference = jnp.asarray([[1.0, -1], [0, 0], [1, -1]])
    logp = jnp.asarray([[0.01, 0.02], [0.01, 0.02], [0.2, 0.02]])

    def loss(logp):
        return d3po_loss(logp, jnp.zeros((3, 2)), preference, beta=10.0, eps=0.1).loss.sum()

    gradient = np.asarray(jax.grad(loss)(logp))
    assert gradient[0, 0] < 0 < gradient[0, 1]
    assert not gradient[1].any()
    assert gradient[2, 0] == 0 and gradient[2, 1] > 0
    tie = d3po_loss(logp, jnp.zeros((3, 2)), preference, beta=10.0, eps=0.1).loss[1]
    assert float(tie) == pytest.approx(np.log(2))


def test_a_run_resumes_to_the_bit_and_learns_what_its_rows_say(settings, tmp_path):
    trained = assert_resumes_to_the_bit(settings, tmp_path)
    assert isinstance(trained.run, Run) and isinstance(load_method("d3po"), Method)
    first, second = trained.rows
    assert first["first_ratio_error"] < 1e-5 and "first_ratio_error" not in second
    assert first["train_batches"] == 2 and 0 <= first["ties"] < 1 and first["reward_gap"] > 0
    assert {name.partition("/")[0] for row in trained.rows for name in row} <= set(trained.run.charts)


@pytest.mark.slow
def test_eight_devices_are_one(settings, tmp_path):
    """The gradients of two trajectories from one start nearly cancel, and AdamW divides what is left by its size.

    The adapter's B, which is zero at first, is 6e-3 of all weights, so that another one would be seen.
    """
    own = dataclasses.replace(settings.d3po, train_batch_size=8)
    assert_devices_agree(dataclasses.replace(settings, prompts_per_batch=8, d3po=own), tmp_path, weights=3e-4)


@pytest.mark.slow
def test_several_rewards_on_the_host(settings, tmp_path):
    """One on the devices and one on the host: all are measured on the host, and each has its curve."""
    both = "tests.e2e.redness,tests.methods.darkness_on_host"
    own = dataclasses.replace(settings.d3po, reward=both)
    trained = train(dataclasses.replace(settings, d3po=own), tmp_path)
    assert {"reward/redness", "reward/darkness", "reward_gap/darkness"} <= set(trained.rows[0])
    assert 0 < trained.rows[0]["ties"] + trained.rows[1]["ties"]


def test_every_reward_is_a_judge():
    settings = D3POTrainSettings(d3po=D3POSettings(reward="toy, aesthetic"))
    assert judges(settings) == [("toy", ""), ("aesthetic", "")]
    assert is_judge("aesthetic", settings) and is_judge("toy", settings) and not is_judge("pickscore", settings)
    guarded = dataclasses.replace(settings.eval, guard="warn", guard_rewards="toy")
    with pytest.raises(UserError, match="eval.guard_rewards names 'toy', by which the run is judged"):
        check(dataclasses.replace(settings, eval=guarded))


def test_a_batch_that_is_not_whole_is_refused():
    with pytest.raises(UserError, match=r"d3po.train_batch_size = 4: expected a number that divides the 10 pairs"):
        D3POTrainSettings(d3po=D3POSettings(train_batch_size=4))
