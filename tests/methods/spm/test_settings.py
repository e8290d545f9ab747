"""A setting that cannot be meant is refused, and named."""

import importlib.util
from pathlib import Path

import pytest

from spo_jax.core.config import from_config, to_config
from spo_jax.core.errors import UserError
from spo_jax.methods.spm.settings import (
    LoadingSettings,
    RelabelSettings,
    SPMEvalSettings,
    SPMLogSettings,
    SPMTrainSettings,
)
from spo_jax.run.folder import RunSettings

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float16"}, "dtype = 'float16': expected 'float32' or 'bfloat16'"),
        ({"posterior": "mode"}, "posterior = 'mode': expected 'sample' or 'mean'"),
        ({"export_dtype": "bfloat16"}, "export_dtype = 'bfloat16': expected 'float32' or 'float16'"),
        ({"batch_size": 0}, "batch_size = 0: expected 1 or more"),
        ({"chunk": 0}, "chunk = 0: expected 1 or more"),
        ({"resolution": -8}, "resolution = -8: expected 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0: expected more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan: expected more than 0"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1: expected 0 or more"),
        ({"adam_beta2": 1.0}, "adam_beta2 = 1.0: expected less than 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm = 0.0: expected more than 0"),
        ({"timestep_power": 0.0}, "timestep_power = 0.0: expected more than 0"),
        ({"guidance_scale": float("inf")}, "guidance_scale = inf: expected a finite number"),
        ({"num_steps": 100, "warmup_steps": 100}, "warmup_steps = 100: expected less than num_steps = 100"),
        ({"seed": 2**32}, "seed = 4294967296: expected 0 to 4294967295"),
        ({"flip": True, "cache_latents": "cache"}, "flip = True: expected False, for the latents of mirrored"),
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
        (RelabelSettings, {"margin": 0.2}, "relabel.margin = 0.2: expected 0.1, for it says nothing without"),
        (RelabelSettings, {"folder": "x"}, "relabel.folder = 'x': expected '', for it says nothing"),
        (LoadingSettings, {"threads": -1}, "loading.threads = -1: expected 0 or more"),
        (SPMLogSettings, {"eval_every": -1}, "log.eval_every = -1: expected 0 or more"),
        (SPMEvalSettings, {"timesteps": ()}, "eval.timesteps = (): expected whole numbers"),
        (SPMEvalSettings, {"timesteps": (0, 0)}, "eval.timesteps = (0, 0): expected whole numbers"),
        (SPMEvalSettings, {"timesteps": (-1,)}, "eval.timesteps = (-1,): expected whole numbers"),
        (SPMEvalSettings, {"batch": 0}, "eval.batch = 0: expected 1 or more"),
    ],
)
def test_bad_fields_of_groups_are_named(group, fields, message):
    with pytest.raises(UserError) as caught:
        group(**fields)
    assert f"config field {message}" in str(caught.value)


def test_settings_survive_a_config_file():
    settings = SPMTrainSettings(eval=SPMEvalSettings(timesteps=(0, 7)), num_steps=9, warmup_steps=1)
    assert from_config(SPMTrainSettings, to_config(settings)) == settings
    assert isinstance(settings, RunSettings)


def read(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config(SPMTrainSettings, module.get_config())


def test_the_published_recipes():
    """Numbers of the paper and its code; 16 pairs on each of 4 devices."""
    sd15, sdxl = read("spm_sd15"), read("spm_sdxl")
    for settings in (sd15, sdxl):
        assert (settings.batch_size, settings.warmup_steps, settings.weight_decay) == (64, 500, 0.3)
        assert (settings.guidance_scale, settings.max_grad_norm, settings.timestep_power) == (5.0, 1.0, 1.0)
        assert settings.eval.timesteps == (0, 251, 501, 701, 951) and settings.posterior == "sample"
        assert settings.dtype == "bfloat16" and not settings.flip
    assert (sd15.num_steps, sd15.learning_rate, sd15.resolution, sd15.relabel.model) == (8000, 3e-6, 512, "")
    assert (sdxl.num_steps, sdxl.learning_rate, sdxl.resolution, sdxl.relabel.margin) == (7000, 1e-6, 1024, 0.1)
    assert sdxl.relabel.model == sdxl.init == "yuvalkirstain/PickScore_v1"


def test_the_tiny_recipe_reads_what_the_package_ships():
    settings = read("spm_tiny")
    assert settings.model == settings.init == "embedded" and settings.init_random
