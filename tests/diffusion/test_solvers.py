"""Whole DDIM trajectories against diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from spo_jax.diffusion.schedule import ScheduleConfig, make_schedule
from spo_jax.diffusion.solvers import ddim_sample

SD15 = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
OFFICIAL = SD15 | {"set_alpha_to_one": False, "steps_offset": 1}
# As the paper on zero terminal SNR says it has to be: trailing spacing and v-prediction.
ZERO_SNR = SD15 | {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


def denoise(numpy_like, x, t):
    """Any smooth function of latents and timestep, in JAX or in torch."""
    return numpy_like.tanh(x * (0.5 + t / 1000)) + 0.1 * x


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        (OFFICIAL, 20),
        (OFFICIAL, 7),  # 7 does not divide 1000
        (SD15, 20),  # ends at ᾱ = 1
        (OFFICIAL | {"timestep_spacing": "linspace", "prediction_type": "sample"}, 20),
        (OFFICIAL | {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 13),
        (ZERO_SNR, 20),
    ],
    ids=["SD 1.5", "7 steps", "to alpha 1", "linspace, sample", "trailing, v", "zero SNR"],
)
def test_trajectory_equals_diffusers(fields, steps):
    theirs = DDIMScheduler(clip_sample=False, **fields)
    schedule = make_schedule(ScheduleConfig.from_dict(dict(theirs.config)), steps)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    theirs.set_timesteps(steps)
    expected = torch.from_numpy(np.array(x))
    for t in theirs.timesteps:
        expected = theirs.step(denoise(torch, expected, t), t, expected, eta=0.0).prev_sample
    ours = jax.jit(lambda x: ddim_sample(lambda x, t: denoise(jnp, x, t), schedule, x))(x)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * float(np.abs(expected).max()))
