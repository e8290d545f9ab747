"""The tables of the solvers: timesteps and noise levels against diffusers, and what they refuse."""

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from spo_jax.core.errors import UserError
from spo_jax.diffusion import SOLVERS
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.diffusion.steps import solver_steps

SD15 = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
CLASSES = {"euler": EulerDiscreteScheduler, "dpm++": DPMSolverMultistepScheduler}


@pytest.mark.parametrize("solver", CLASSES)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 20, 50, 300])
@pytest.mark.parametrize("karras", [False, True])
def test_timesteps_and_levels_are_diffusers(solver, spacing, steps, karras):
    """Levels up to float32's rounding of ᾱ, from which both start."""
    fields = SD15 | {"timestep_spacing": spacing}
    theirs = CLASSES[solver](**fields, use_karras_sigmas=karras)
    theirs.set_timesteps(steps)
    table = solver_steps(ScheduleConfig.from_dict(fields), solver, steps, karras)
    np.testing.assert_allclose(table.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(table.noise / table.signal, theirs.sigmas[:-1], rtol=1e-4)
    np.testing.assert_array_equal(table.signal[1:], table.next_signal[:-1])
    assert table.next_noise[-1] == 0 and table.next_signal[-1] == 1
    scale = theirs.init_noise_sigma * float(table.signal[0]) if solver == "euler" else 1.0
    np.testing.assert_allclose(table.initial_scale, scale, rtol=1e-4)


def test_whole_timesteps_are_integers():
    config = ScheduleConfig.from_dict(SD15)
    assert {name: solver_steps(config, name, 20).timesteps.dtype for name in SOLVERS} == {
        "ddim": np.int32, "euler": np.float32, "dpm++": np.int32
    }  # fmt: skip


def test_first_order_solvers_do_not_extrapolate():
    config = ScheduleConfig.from_dict(SD15)
    table = {name: solver_steps(config, name, 20) for name in SOLVERS}
    assert not table["ddim"].extrapolation.any() and not table["euler"].extrapolation.any()
    assert table["dpm++"].extrapolation[1:-1].all() and not table["dpm++"].extrapolation[[0, -1]].any()


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({}, ("heun", 20), "solver 'heun': expected one of ddim, euler, dpm"),
        ({}, ("ddim", 20, True), "Karras noise levels are for the solvers euler and dpm"),
        ({}, ("euler", 0), "steps: 0, expected 1 to 1000"),
        ({}, ("euler", 1001), "steps: 1001, expected 1 to 1000"),
        ({}, ("dpm++", 0), r"steps: 0, expected 1 to 999 with dpm\+\+"),
        ({}, ("dpm++", 1000), r"steps: 1000, expected 1 to 999 with dpm\+\+"),
        ({"timestep_spacing": "trailing"}, ("dpm++", 0), "steps: 0, expected 1 to 1000"),
        ({"timestep_spacing": "leading"}, ("euler", 1000), "with leading spacing and steps_offset 1 .* 1000 to 1,"),
        ({"timestep_spacing": "trailing"}, ("dpm++", 61), "steps: 61: with trailing spacing .* expected within 999"),
    ],
)
def test_impossible_steps_are_refused(fields, arguments, message):
    with pytest.raises(UserError, match=message):
        solver_steps(ScheduleConfig.from_dict(SD15 | fields), *arguments)


@pytest.mark.parametrize("solver", SOLVERS)
def test_noise_prediction_cannot_start_from_pure_noise(solver):
    """diffusers' DDIM divides by 0 there, its other solvers by 2e-4. A spacing without that timestep is fine."""
    fields = SD15 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(UserError, match="prediction_type 'epsilon' with rescale_betas_zero_snr: .* timestep 999, "):
        solver_steps(ScheduleConfig.from_dict(fields), solver, 20)
    leading = solver_steps(ScheduleConfig.from_dict(fields | {"timestep_spacing": "leading"}), solver, 20)
    assert leading.timesteps[0] < 999 and leading.signal.all()
