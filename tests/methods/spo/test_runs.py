"""Whole runs of GradSPO and of the paper's ablations: interrupted and not, on one device and on eight."""

import numpy as np
import pytest

from spo_jax.core.trees import flatten
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.models.lora import read_lora
from tests.e2e.micro import write_micro
from tests.methods.runs import TINY_EVAL, assert_devices_agree, assert_resumes_to_the_bit, train

GRADSPO = dict(objective="gradspo", ema_decay=0.9, accept_last_step=True)


def settings_of(model, **spo):
    """Two batches of eight prompts and two training batches each, judged by the red of small images."""
    own = dict(num_steps=4, divert_start_step=1, num_candidates=2, threshold=0.0, train_batch_size=16, train_chunk=2)
    return SPOTrainSettings(
        model=model,
        prompts_per_batch=8,
        max_batches=2,
        spo=SPOSettings(reward="tests.e2e.redness", **own | spo),
        optimizer=OptimizerSettings(learning_rate=1e-3),
        eval=TINY_EVAL,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of the smallest model."""
    return str(write_micro(tmp_path_factory.mktemp("models") / "micro"))


def test_a_run_with_a_running_mean_resumes_to_the_bit(model, tmp_path):
    assert_resumes_to_the_bit(settings_of(model, **GRADSPO), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spo",
    [
        GRADSPO,
        dict(GRADSPO, num_inner_step=1, branch_at_last_step=False),
        dict(ema_decay=0.9),
        dict(next_parent="best"),
        dict(next_parent="best", num_inner_step=1, branch_at_last_step=False),
        dict(shared_parent=False),
        dict(judge_timestep="zero"),
    ],
    ids=str,
)
def test_eight_devices_are_one(model, tmp_path, spo):
    assert_devices_agree(settings_of(model, **spo), tmp_path)


@pytest.mark.slow
def test_the_trained_adapter_is_exported_and_not_its_mean(model, tmp_path):
    """As in GradSPO's code; the mean is behind it."""
    trained = train(settings_of(model, **GRADSPO), tmp_path)
    trained.run.export(trained.state, tmp_path)
    exported = flatten(read_lora(tmp_path / "lora.safetensors").tree)
    params, mean = flatten(trained.state.params), flatten(trained.state.mean)
    for name, value in exported.items():
        np.testing.assert_array_equal(value, params[name])
    assert any(np.abs(params[name] - mean[name]).max() > 1e-4 for name in params)
