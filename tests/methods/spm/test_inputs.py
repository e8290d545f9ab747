"""The preference model's input: clean predictions of noised images, as pixels."""

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.methods.spm.inputs import predictions, training_pixels
from spo_jax.rewards.common.clip_score import CLIP_MEAN, CLIP_STD, pixel_values

SCHEDULE = make_ddpm(ScheduleConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012), 20)


def noise_of(latents):
    return jax.random.normal(jax.random.key(1), latents[:, 0].shape)


def test_both_members_of_a_pair_get_the_same_noise_and_timestep():
    seen = {}

    def denoise(x, t):
        seen["x"], seen["t"] = x, t
        return jnp.zeros_like(x)

    latents = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3))
    t = jnp.array([1, 400, 900])
    predictions(noise_of(latents), SCHEDULE, denoise, lambda z: z, latents, t)
    np.testing.assert_array_equal(seen["t"], [1, 1, 400, 400, 900, 900])
    clean = SCHEDULE.add_noise(latents.reshape(6, 4, 4, 3), jnp.zeros((6, 4, 4, 3)), seen["t"])
    noise = (seen["x"] - clean).reshape(3, 2, 4, 4, 3)
    np.testing.assert_allclose(noise[:, 0], noise[:, 1], atol=1e-5)
    assert np.abs(noise[0, 0] - noise[1, 0]).max() > 0.1  # pairs differ from one another


def test_the_true_noise_gives_the_images_back():
    latents, t = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3)), jnp.array([1, 400, 900])
    flat = latents.reshape(6, 4, 4, 3)

    def perfect(x, t):
        roots = [SCHEDULE.alphas_cumprod[np.asarray(t)] ** 0.5, (1 - SCHEDULE.alphas_cumprod[np.asarray(t)]) ** 0.5]
        kept, noisy = (jnp.asarray(root).reshape(-1, 1, 1, 1) for root in roots)
        return (x - kept * flat) / noisy

    out = predictions(noise_of(latents), SCHEDULE, perfect, lambda z: z, latents, t)
    np.testing.assert_allclose(out, latents, atol=1e-3)


def test_training_pixels_clamp_before_the_resize_and_scoring_after():
    images = 3 * jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    training, scoring = training_pixels(images, 8), pixel_values(images, 8)
    assert np.abs(training - scoring).max() > 0.1
    unit = np.asarray(training) * np.asarray(CLIP_STD) + np.asarray(CLIP_MEAN)
    assert unit.min() > -1e-6 and unit.max() < 1 + 1e-6
    inside = images.clip(-1, 1) * 0.5
    np.testing.assert_allclose(training_pixels(inside, 16), pixel_values(inside, 16), atol=1e-5)
