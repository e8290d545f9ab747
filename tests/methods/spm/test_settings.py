"""Settings of preference models: values out of range are refused by name, and the recipes are the published ones."""

import importlib.util
from pathlib import Path

import pytest

from spo_jax.core.config import from_config, to_config
from spo_jax.core.errors import UserError
from spo_jax.methods import read_settings
from spo_jax.methods.common.preference.settings import AccuracySettings
from spo_jax.methods.common.settings import LoadingSettings, OptimizerSettings
from spo_jax.methods.spm.settings import RelabelSettings, SPMTrainSettings
from spo_jax.run.settings import LogSettings, RunSettings

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float16"}, "dtype = 'float16': expected 'float32' or 'bfloat16'"),
        ({"posterior": "mode"}, "posterior = 'mode': expected 'sample' or 'mean'"),
        ({"export_dtype": "bfloat16"}, "export_dtype = 'bfloat16': expected 'float32' or 'float16'"),
        ({"batch_size": 0}, "batch_size = 0: expected 1 to "),
        ({"chunk": 0}, "chunk = 0: expected 1 to "),
        ({"resolution": -8}, "resolution = -8: expected 0 to "),
        ({"timestep_power": 0.0}, "timestep_power = 0.0: expected more than 0"),
        ({"guidance_scale": float("inf")}, "guidance_scale = inf: expected -1000 to 1000"),
        (
            {"train_steps": 100, "optimizer": OptimizerSettings(warmup_steps=100)},
            "optimizer.warmup_steps = 100: expected less than the 100 optimizer steps of the run",
        ),
        (
            {"train_steps": 100, "optimizer": OptimizerSettings(warmup_steps=50, gradient_accumulation_steps=2)},
            "optimizer.warmup_steps = 50: expected less than the 50 optimizer steps of the run",
        ),
        ({"seed": 2**32}, "seed = 4294967296: expected 0 to 4294967295"),
        ({"flip": True, "cache_latents": "cache"}, "flip = True: expected False, because the cache"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(UserError) as caught:
        SPMTrainSettings(**fields)
    assert f"config field {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("group", "fields", "message"),
    [
        (RelabelSettings, {"margin": 1.0}, "relabel.margin = 1.0: expected 0 to below 1"),
        (RelabelSettings, {"margin": 0.2}, "relabel.margin = 0.2: expected 0.1, because it has no effect without"),
        (RelabelSettings, {"folder": "x"}, "relabel.folder = 'x': expected '', because it has no effect without"),
        (OptimizerSettings, {"learning_rate": 0.0}, "optimizer.learning_rate = 0.0: expected more than 0, at most "),
        (OptimizerSettings, {"learning_rate": float("nan")}, "optimizer.learning_rate = nan: expected more than 0"),
        (OptimizerSettings, {"weight_decay": -0.1}, "optimizer.weight_decay = -0.1: expected 0 to "),
        (OptimizerSettings, {"adam_beta2": 1.0}, "optimizer.adam_beta2 = 1.0: expected 0 to below 1"),
        (OptimizerSettings, {"max_grad_norm": 0.0}, "optimizer.max_grad_norm = 0.0: expected more than 0 and finite"),
        (LoadingSettings, {"threads": -1}, "loading.threads = -1: expected 0 to "),
        (LogSettings, {"eval_every": -1}, "log.eval_every = -1: expected 0 to "),
        (AccuracySettings, {"timesteps": ()}, "eval.timesteps = (): expected whole numbers"),
        (AccuracySettings, {"timesteps": (0, 0)}, "eval.timesteps = (0, 0): expected whole numbers"),
        (AccuracySettings, {"timesteps": (-1,)}, "eval.timesteps = (-1,): expected whole numbers"),
        (AccuracySettings, {"batch": 0}, "eval.batch = 0: expected 1 to "),
    ],
)
def test_bad_fields_of_groups_are_named(group, fields, message):
    with pytest.raises(UserError) as caught:
        group(**fields)
    assert f"config field {message}" in str(caught.value)


def test_settings_survive_a_config_file():
    settings = SPMTrainSettings(
        eval=AccuracySettings(timesteps=(0, 7)), train_steps=9, optimizer=OptimizerSettings(warmup_steps=1)
    )
    assert from_config(SPMTrainSettings, to_config(settings)) == settings
    assert isinstance(settings, RunSettings)


def read(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return read_settings(module.get_config())


def test_the_published_recipes():
    """Numbers of the paper and its code; 16 pairs on each of 4 devices."""
    sd15, sdxl = read("spm_sd15"), read("spm_sdxl")
    for settings in (sd15, sdxl):
        assert (settings.batch_size, settings.optimizer.warmup_steps, settings.optimizer.weight_decay) == (64, 500, 0.3)
        assert (settings.guidance_scale, settings.optimizer.max_grad_norm, settings.timestep_power) == (5.0, 1.0, 1.0)
        assert settings.eval.timesteps == (0, 251, 501, 701, 951) and settings.posterior == "sample"
        assert settings.dtype == "bfloat16" and not settings.flip and settings.optimizer.schedule == "linear"
    assert (sd15.train_steps, sd15.optimizer.learning_rate, sd15.resolution, sd15.relabel.model) == (
        8000,
        3e-6,
        512,
        "",
    )
    assert (sdxl.train_steps, sdxl.optimizer.learning_rate, sdxl.resolution, sdxl.relabel.margin) == (
        7000,
        1e-6,
        1024,
        0.1,
    )
    assert sdxl.relabel.model == sdxl.init == "yuvalkirstain/PickScore_v1"


def test_the_toy_recipe_reads_the_networks_that_the_package_ships():
    settings = read("spm_toy")
    assert settings.model == settings.init == "toy" and settings.init_random
