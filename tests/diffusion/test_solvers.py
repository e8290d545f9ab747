"""Whole trajectories against diffusers' schedulers, with a fixed denoiser.

The tolerance is 1e-4 of the largest latent, for float32's rounding in up to 50 steps. The differences found are 1e-6,
and 1e-5 for Euler from zero SNR, where diffusers' latents begin 4096 times as large.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.diffusion.solvers import solve
from spo_jax.diffusion.steps import solver_steps

SD15 = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
OFFICIAL = SD15 | {"set_alpha_to_one": False, "steps_offset": 1}
# What the paper on zero terminal SNR requires: trailing spacing and v-prediction.
ZERO_SNR = SD15 | {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
# Every class reads a pipeline's own DDIM config, and has its own defaults for fields that are absent.
CLASSES = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpm++": DPMSolverMultistepScheduler}


def denoise(numpy_like, x, t):
    """A smooth function of latents and timestep, in JAX or in torch."""
    return numpy_like.tanh(x * (0.5 + t / 1000)) + 0.1 * x


def theirs(solver, fields, steps, x, **options):
    """Runs a scheduler as diffusers' pipelines do."""
    scheduler = CLASSES[solver].from_config(dict(DDIMScheduler(clip_sample=False, **fields).config), **options)
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(np.array(x)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(torch, scheduler.scale_model_input(x, t), t), t, x).prev_sample
    assert torch.isfinite(x).all()
    return x.numpy()


def ours(solver, fields, steps, x, **options):
    table = solver_steps(ScheduleConfig.from_dict(fields), solver, steps, **options)
    return jax.jit(lambda x: solve(lambda x, t: denoise(jnp, x, t), table, x))(x)


@pytest.fixture(scope="module")
def noise():
    return jax.random.normal(jax.random.key(0), (2, 4, 4, 3))


@pytest.mark.parametrize("solver", CLASSES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", [None, "leading", "trailing", "linspace"])
def test_trajectory_equals_diffusers(solver, prediction, spacing, noise):
    """Without a spacing in the config, the solver's own is used."""
    fields = OFFICIAL | {"prediction_type": prediction} | ({"timestep_spacing": spacing} if spacing else {})
    expected = theirs(solver, fields, 20, noise)
    np.testing.assert_allclose(ours(solver, fields, 20, noise), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("solver", CLASSES)
@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        (OFFICIAL, 1),
        (OFFICIAL, 2),
        (OFFICIAL | {"timestep_spacing": "leading"}, 7),  # 7 does not divide 1000
        (OFFICIAL | {"timestep_spacing": "leading"}, 50),
        (OFFICIAL | {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 13),
        (SD15, 20),  # DDIM ends at ᾱ = 1
        ({"trained_betas": [0.1, 0.2, 0.05, 0.4, 0.3], "num_train_timesteps": 5}, 3),
        (ZERO_SNR, 20),
        (ZERO_SNR | {"timestep_spacing": "linspace"}, 20),
        (ZERO_SNR | {"timestep_spacing": "leading", "steps_offset": 1}, 20),
        (ZERO_SNR | {"prediction_type": "sample"}, 20),
    ],
    ids=[
        "1 step", "2 steps", "7 steps", "50 steps", "trailing, v", "to alpha 1", "given betas", "zero SNR",
        "zero SNR, linspace", "zero SNR, leading", "zero SNR, sample",
    ],
)  # fmt: skip
def test_other_processes_equal_diffusers(solver, fields, steps, noise):
    expected = theirs(solver, fields, steps, noise)
    np.testing.assert_allclose(ours(solver, fields, steps, noise), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("solver", ["euler", "dpm++"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("fields", [OFFICIAL, ZERO_SNR], ids=["SD 1.5", "zero SNR"])
def test_karras_levels_equal_diffusers(solver, spacing, fields, noise):
    fields = fields | {"timestep_spacing": spacing}
    expected = theirs(solver, fields, 20, noise, use_karras_sigmas=True)
    found = ours(solver, fields, 20, noise, karras=True)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    config = ScheduleConfig.from_dict(fields)
    levels = [solver_steps(config, solver, 20, karras).noise for karras in (False, True)]
    assert np.abs(levels[0] - levels[1]).max() > 1e-2
