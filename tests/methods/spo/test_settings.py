"""SPO's settings: the published recipes, derived numbers, and values that are refused."""

import dataclasses
import importlib.util

import pytest

from spo_jax.core.config import to_config
from spo_jax.core.config_flag import find_config
from spo_jax.core.errors import UserError
from spo_jax.methods import default_config, read_settings
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings


def settings_of(name):
    spec = importlib.util.spec_from_file_location(name, find_config(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return read_settings(module.get_config())


def test_sd15_is_the_published_recipe():
    """Section 4 of the paper and the settings of its code, times 4 devices."""
    settings = settings_of("sd15")
    spo = settings.spo
    assert (spo.num_candidates, spo.num_steps, spo.eta, spo.guidance_scale, spo.divert_start_step) == (4, 20, 1, 5, 4)
    assert (spo.num_inner_step, spo.branch_at_last_step, spo.threshold, spo.beta, spo.eps) == (0, True, 0.3, 10, 0.1)
    assert (spo.reward, spo.decoder) == ("spm", "vae")
    assert settings.optimizer == OptimizerSettings(
        learning_rate=6e-5,
        schedule="constant",
        warmup_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=1e-4,
        max_grad_norm=1.0,
        gradient_accumulation_steps=1,
    )
    assert (settings.prompts_per_batch, spo.train_batch_size, settings.num_epochs) == (40, 40, 10)
    assert (settings.lora.rank, settings.lora.scale) == (4, 1.0)


def test_sdxl_is_the_published_recipe():
    """The same sections and code, times 4 devices; everything that is not listed here is as in SD 1.5's."""
    settings = settings_of("sdxl")
    sd15 = settings_of("sd15")
    changed = dict(
        num_candidates=2, num_inner_step=3, branch_at_last_step=False, threshold=0.4, train_batch_size=8,
        decode_chunk=2, train_chunk=4,
    )  # fmt: skip
    assert settings.spo == dataclasses.replace(sd15.spo, **changed)
    optimizer = dataclasses.replace(sd15.optimizer, learning_rate=1e-5, gradient_accumulation_steps=2)
    assert settings.optimizer == optimizer
    assert (settings.prompts_per_batch, settings.num_epochs) == (8, 10)
    assert (settings.lora.rank, settings.lora.scale) == (64, 1.0)
    assert settings.model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert settings.vae == "madebyollin/sdxl-vae-fp16-fix"
    assert settings.spm.model.endswith("Step-Aware_Preference_Models/sdxl_step-aware_preference_model.bin")


def test_gradspo_is_spo_but_for_its_own_settings():
    """Its code is SPO's with these changes; for SDXL it has no inner steps, and 1 pair a device in 4 accumulated."""
    own = dict(objective="gradspo", grad_scale=0.5, ema_decay=0.9)
    found, spo = settings_of("gradspo_sd15"), settings_of("sd15")
    assert found == dataclasses.replace(spo, spo=dataclasses.replace(spo.spo, **own, accept_last_step=True))
    found, spo = settings_of("gradspo_sdxl"), settings_of("sdxl")
    own |= dict(num_candidates=4, num_inner_step=0, train_batch_size=4)
    optimizer = dataclasses.replace(spo.optimizer, gradient_accumulation_steps=4)
    assert found == dataclasses.replace(spo, spo=dataclasses.replace(spo.spo, **own), optimizer=optimizer)


def test_defaults_are_those_of_sd15():
    settings = settings_of("sd15")
    assert settings.optimizer == OptimizerSettings()
    # The recipe's batch is for 4 devices together.
    assert settings.spo == SPOSettings(train_batch_size=settings.spo.train_batch_size)


def test_the_default_config_is_the_method_s():
    config = default_config("spo")
    assert not config.is_locked
    assert read_settings(config) == SPOTrainSettings()


def test_chunks_are_equal_parts():
    """24 by at most 10 a device: three of 8 on one device, two of 12 on two; never more than the batch."""
    settings = SPOSettings(train_batch_size=24, train_chunk=10)
    assert [settings.chunk(devices) for devices in (1, 2, 4, 8)] == [8, 12, 24, 24]


def test_batch_sizes_are_read_and_replaced_by_name():
    settings = SPOTrainSettings(prompts_per_batch=3, spo=SPOSettings(train_batch_size=5))
    sizes = {"prompts_per_batch": 3, "spo.train_batch_size": 5}
    assert settings.batch_sizes() == sizes
    doubled = settings.with_batch_sizes({name: 2 * size for name, size in sizes.items()})
    assert doubled == SPOTrainSettings(prompts_per_batch=6, spo=SPOSettings(train_batch_size=10))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps = 0: expected 1 to "),
        ({"eta": 0.0}, "eta = 0.0: expected more than 0 and finite"),
        ({"divert_start_step": 20}, "divert_start_step = 20: expected 0 to 19"),
        ({"divert_start_step": -1}, "divert_start_step = -1: expected 0 to "),
        ({"divert_start_step": 19, "branch_at_last_step": False}, "divert_start_step = 19: expected 0 to 18"),
        ({"num_candidates": 1}, "num_candidates = 1: expected 2 to 1024"),
        ({"num_inner_step": -1}, "num_inner_step = -1: expected 0 to "),
        ({"beta": 0.0}, "beta = 0.0: expected more than 0, at most "),
        ({"eps": 1.0}, "eps = 1.0: expected more than 0 to below 1"),
        ({"train_batch_size": 0}, "train_batch_size = 0: expected 1 to "),
        ({"train_chunk": 0}, "train_chunk = 0: expected 1 to "),
        ({"threshold": 1.0}, "threshold = 1.0: expected 0 to below 1"),
        ({"objective": "dpo"}, "objective = 'dpo': expected 'spo' or 'gradspo'"),
        ({"grad_scale": 0.0}, "grad_scale = 0.0: expected more than 0, at most 1000"),
        ({"ema_decay": 1.0}, "ema_decay = 1.0: expected 0 to below 1"),
        ({"judge_timestep": "none"}, "judge_timestep = 'none': expected 'step' or 'zero'"),
        ({"next_parent": "worst"}, "next_parent = 'worst': expected 'random' or 'best'"),
        (
            {"next_parent": "best", "shared_parent": False},
            "next_parent = 'best': expected 'random' for spo.shared_parent = False",
        ),
        (
            {"objective": "gradspo", "shared_parent": False},
            "shared_parent = False: expected True for spo.objective = 'gradspo'",
        ),
        ({"decode_chunk": -1}, "decode_chunk = -1: expected 0 to "),
        ({"second_weight": 0.3}, "second_weight = 0.3: expected 0.5, or a judge in spo.second_reward"),
        ({"second_steps": 2}, "second_steps = 2: expected 1, or a judge in spo.second_reward"),
        ({"guidance_scale": float("inf")}, "guidance_scale = inf: expected -1000 to 1000"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(UserError, match=f"^config field spo.{message}"):
        SPOSettings(**fields)


def test_a_learning_rate_that_falls_to_zero_is_refused():
    """The number of training batches follows from the valid pairs, and is not known before the run."""
    with pytest.raises(UserError, match="config field optimizer.schedule = 'linear': expected 'constant', because"):
        SPOTrainSettings(optimizer=OptimizerSettings(schedule="linear"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model", "embedded"), "config field model = 'embedded': this is now 'toy'"),
        (("prompts", "embedded:train"), "config field prompts = 'embedded:train': this is now 'toy:train'"),
        (("method", None), "config field method is missing: .*'spo'"),
        (("method", "sop"), "config field method = 'sop': .*expected .*'spo'"),
        (("prompts_per_batch", "two"), "config field prompts_per_batch = 'two': expected int"),
    ],
)
def test_configs_that_cannot_be_read_are_refused(change, message):
    field, value = change
    with pytest.raises(UserError, match=message):
        read_settings(to_config(SPOTrainSettings()).to_dict() | {field: value})
