"""Inversions where the answer is known: a network that predicts the true noise at every timestep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.methods.diffusion_dpo.inversion import invert

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
RNG = np.random.default_rng(0)
LATENTS, NOISE = (jnp.asarray(RNG.normal(size=(3, 4, 4, 2)), jnp.float32) for _ in range(2))
T = jnp.array([1, 450, 999])


def process_of(prediction, steps=5):
    return make_ddpm(ScheduleConfig.from_dict({**SD, "prediction_type": prediction}), steps)


def oracle(process):
    """A network that knows x0: its noise is whatever else is in x, which lies below the timestep it is told."""

    def denoise(x, t):
        below = process.previous(t)
        noise = process.noise_in(x, LATENTS, below)
        return process.target(LATENTS, noise, below)

    return denoise


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["ddim", "renoise"])
def test_each_image_walks_to_the_last_grid_timestep_below_its_own(prediction, kind):
    """At t = 1 no timestep is below, and the image itself is taken for x_t; the others end at 401 and 801."""
    process = process_of(prediction)
    seen = []

    def denoise(x, t):
        jax.debug.callback(lambda t: seen.append(int(t[0])), t)
        return process.target(LATENTS, NOISE, t)  # the same noise, whatever it is shown

    out = jax.jit(lambda: invert(denoise, process, kind, LATENTS, T))()
    np.testing.assert_array_equal(out.x[0], LATENTS[0])
    jax.effects_barrier()
    assert sorted(set(seen)) == [1, 201, 401, 601, 801] and len(seen) == 5 * (1 + (kind == "renoise"))
    np.testing.assert_allclose(process.add_noise(LATENTS, out.noise, T), out.x, atol=1e-5)


def test_steps_above_every_image_are_not_computed():
    process = process_of("epsilon")
    seen = []

    def denoise(x, t):
        jax.debug.callback(lambda t: seen.append(int(t[0])), t)
        return jnp.zeros_like(x)

    jax.jit(lambda: invert(denoise, process, "ddim", LATENTS, jnp.array([1, 150, 300])))()
    jax.effects_barrier()
    assert sorted(seen) == [1, 201]


def test_noise_of_the_steps_counts_only_with_eta():
    process = process_of("epsilon")
    steps = jnp.asarray(RNG.normal(size=(5, *LATENTS.shape)), jnp.float32)
    plain = invert(oracle(process), process, "ddim", LATENTS, T)
    same = invert(oracle(process), process, "ddim", LATENTS, T, steps, 0.0)
    other = invert(oracle(process), process, "ddim", LATENTS, T, steps, 0.1)
    np.testing.assert_allclose(same.x, plain.x, atol=1e-6)
    assert np.abs(other.x[1:] - plain.x[1:]).max() > 1e-3 and (other.x[0] == plain.x[0]).all()
