"""Settings of a run: the shipped configs, derived numbers, and values that cannot be."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from spo_jax.core.config import from_config, to_config
from spo_jax.core.errors import UserError
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spo.settings import EvalSettings, LogSettings, LoRASettings, SPOSettings, TrainSettings

CONFIGS = sorted(path for path in (Path(__file__).parents[3] / "configs").glob("*.py") if path.stem != "__init__")


def read(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.get_config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_and_tells_its_command(path):
    module, config = read(path)
    assert config.is_locked
    assert f"--config=configs/{path.name}" in module.__doc__
    cls = SPMTrainSettings if path.stem.startswith("spm_") else TrainSettings
    settings = from_config(cls, config)
    assert from_config(cls, to_config(settings)) == settings


def test_sd15_is_the_published_recipe():
    """Section 4 of the paper and the settings of its code, times 4 devices."""
    _, config = read(next(path for path in CONFIGS if path.stem == "sd15"))
    settings = from_config(TrainSettings, config)
    spo = settings.spo
    assert (spo.num_candidates, spo.num_steps, spo.eta, spo.guidance_scale, spo.divert_start_step) == (4, 20, 1, 5, 4)
    assert (spo.num_inner_step, spo.branch_at_last_step, spo.threshold, spo.beta, spo.eps) == (0, True, 0.3, 10, 0.1)
    adamw = (spo.learning_rate, spo.adam_beta1, spo.adam_beta2, spo.adam_epsilon, spo.weight_decay, spo.max_grad_norm)
    assert adamw == (6e-5, 0.9, 0.999, 1e-8, 1e-4, 1.0)
    assert (settings.prompts_per_batch, spo.train_batch_size, settings.num_epochs) == (40, 40, 10)
    assert (settings.lora.rank, settings.lora.scale) == (4, 1.0)


def test_sdxl_is_the_published_recipe():
    """The same sections and code, times 4 devices; what is not told here is as in SD 1.5's."""
    settings, sd15 = (
        from_config(TrainSettings, read(next(path for path in CONFIGS if path.stem == name))[1])
        for name in ("sdxl", "sd15")
    )
    changed = dict(
        num_candidates=2, num_inner_step=3, branch_at_last_step=False, threshold=0.4, learning_rate=1e-5,
        train_batch_size=8, gradient_accumulation_steps=2, decode_chunk=2, train_chunk=4,
    )  # fmt: skip
    assert settings.spo == dataclasses.replace(sd15.spo, **changed)
    assert (settings.prompts_per_batch, settings.num_epochs) == (8, 10)
    assert (settings.lora.rank, settings.lora.scale) == (64, 1.0)
    assert settings.model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert settings.vae == "madebyollin/sdxl-vae-fp16-fix"
    assert settings.spm.model.endswith("Step-Aware_Preference_Models/sdxl_step-aware_preference_model.bin")


def test_defaults_are_those_of_sd15():
    _, config = read(next(path for path in CONFIGS if path.stem == "sd15"))
    settings = from_config(TrainSettings, config)
    changed = {"train_batch_size": settings.spo.train_batch_size}  # for 4 devices together
    assert from_config(SPOSettings, to_config(SPOSettings()).to_dict() | changed) == settings.spo


@pytest.mark.parametrize(
    ("fields", "prompts", "expected"),
    [
        (dict(prompts_per_batch=8, num_epochs=5), 46, 28),
        (dict(prompts_per_batch=8, num_epochs=1), 8, 1),
        (dict(prompts_per_batch=8, num_epochs=1), 3, 1),  # fewer prompts than a batch holds: they repeat
        (dict(prompts_per_batch=8, num_epochs=5, max_batches=3), 46, 3),
        (dict(prompts_per_batch=8, num_epochs=1, max_batches=3), 8, 1),
    ],
)
def test_total_batches(fields, prompts, expected):
    assert TrainSettings(**fields).total_batches(prompts) == expected


def test_an_alpha_of_zero_means_the_rank():
    assert LoRASettings(8).scale == 1.0
    assert LoRASettings(8, 4.0).scale == 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SPOSettings(num_candidates=1), "spo.num_candidates = 1"),
        (lambda: SPOSettings(beta=-1.0), "spo.beta = -1.0"),
        (lambda: SPOSettings(threshold=1.0), "spo.threshold = 1.0: expected 0 to below 1"),
        (lambda: SPOSettings(decode_chunk=0), "spo.decode_chunk = 0: expected at least 1"),
        (lambda: LoRASettings(0), "lora.rank = 0"),
        (lambda: LoRASettings(4, -1.0), "lora.alpha = -1.0"),
        (lambda: LogSettings(sample_pictures=0), "log.sample_pictures = 0: expected 1 or more"),
        (lambda: LogSettings(checkpoint_every=-1), "log.checkpoint_every = -1: expected 0 or more"),
        (lambda: LogSettings(keep_checkpoints=0), "log.keep_checkpoints = 0: expected 1 or more"),
        (lambda: EvalSettings(reward="beauty"), "eval.reward = 'beauty': expected 'scenes' or 'spm'"),
        (lambda: EvalSettings(pictures=0), "eval.pictures = 0"),
        (lambda: TrainSettings(dtype="float16"), "dtype = 'float16': expected 'float32' or 'bfloat16'"),
        (lambda: TrainSettings(prompts_per_batch=0), "prompts_per_batch = 0: expected 1 or more"),
        (lambda: TrainSettings(num_epochs=0), "num_epochs = 0: expected 1 or more"),
        (lambda: TrainSettings(max_batches=-1), "max_batches = -1: expected 0 or more"),
        (lambda: TrainSettings(seed=-1), "seed = -1: expected 0 to 4294967295"),
        (lambda: TrainSettings(seed=2**32), "seed = 4294967296: expected 0 to"),
        (lambda: EvalSettings(seed=-1), "eval.seed = -1: expected 0 to"),
        (lambda: EvalSettings(steps=0), "eval.steps = 0: expected 1 or more"),
        (lambda: EvalSettings(guidance_scale=float("nan")), "eval.guidance_scale = nan: expected a finite number"),
        (lambda: SPOSettings(guidance_scale=float("inf")), "spo.guidance_scale = inf: expected a finite number"),
        (lambda: SPOSettings(learning_rate=float("inf")), "spo.learning_rate = inf: expected more than 0, and finite"),
        (lambda: LoRASettings(4, float("nan")), "lora.alpha = nan: expected a finite number"),
    ],
)
def test_values_that_cannot_be(build, message):
    with pytest.raises(UserError, match=message):
        build()
