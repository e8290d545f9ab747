"""Stochastic DDIM steps: against diffusers, and as Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from spo_jax.diffusion.ddpm import DDPM, make_ddpm
from spo_jax.diffusion.process import Process, log_prob
from spo_jax.diffusion.schedule import ScheduleConfig

SD15 = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1)
# The config with which models without any signal at the last training timestep are published: ᾱ is 0 at the first step.
ZERO_SNR = SD15 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SHAPE = (3, 4, 5, 2)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def process_of(prediction_type, steps=20):
    return make_ddpm(ScheduleConfig.from_dict(SD15 | {"prediction_type": prediction_type}), steps)


def to_torch(x):
    return torch.from_numpy(np.array(x))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_equals_diffusers(prediction_type, eta):
    """Layout does not matter to a step, so torch gets our arrays as they are."""
    theirs = DDIMScheduler(clip_sample=False, prediction_type=prediction_type, **SD15)
    theirs.set_timesteps(20)
    process = process_of(prediction_type)
    x, prediction, noise = normal(0), normal(1), normal(2)
    for t in (951, 501, 1):
        x0, eps = process.split(x, prediction, jnp.int32(t))
        mean, std = process.step(x0, eps, jnp.int32(t), eta)
        step = theirs.step(to_torch(prediction), t, to_torch(x), eta=eta, variance_noise=to_torch(noise))
        scale = float(np.abs(step.pred_original_sample).max())
        np.testing.assert_allclose(x0, step.pred_original_sample, atol=2e-6 * scale)
        np.testing.assert_allclose(mean + std * noise, step.prev_sample, atol=2e-6 * scale)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_exact_prediction_recovers_latents_and_noise(prediction_type):
    """One timestep for all, and one per row."""
    process = process_of(prediction_type)
    x0, eps = normal(0), normal(1)
    for t in (jnp.int32(501), jnp.array([951, 501, 251], jnp.int32)):
        a = jnp.asarray(process.alphas_cumprod)[t].reshape(-1, 1, 1, 1)
        x = process.add_noise(x0, eps, t)
        exact = {"epsilon": eps, "sample": x0, "v_prediction": jnp.sqrt(a) * eps - jnp.sqrt(1 - a) * x0}
        found = process.split(x, exact[prediction_type], t)
        np.testing.assert_allclose(found[0], x0, atol=2e-5)
        np.testing.assert_allclose(found[1], eps, atol=2e-5)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_target_is_the_exact_prediction(prediction_type):
    """v as diffusers' get_velocity; and `split` gives back what the target was made of."""
    process = process_of(prediction_type)
    t = jnp.array([951, 501, 251], jnp.int32)
    x0, eps = normal(0), normal(1)
    target = process.target(x0, eps, t)
    found = process.split(process.add_noise(x0, eps, t), target, t)
    np.testing.assert_allclose(found[0], x0, atol=2e-5)
    np.testing.assert_allclose(found[1], eps, atol=2e-5)
    if prediction_type == "v_prediction":
        theirs = DDIMScheduler(**SD15).get_velocity(to_torch(x0), to_torch(eps), torch.tensor([951, 501, 251]))
        np.testing.assert_allclose(target, theirs, atol=1e-6)


def test_add_noise_equals_diffusers():
    theirs = DDIMScheduler(clip_sample=False, **SD15)
    t = jnp.array([951, 501, 1], jnp.int32)
    expected = theirs.add_noise(to_torch(normal(0)), to_torch(normal(1)), torch.tensor([951, 501, 1]))
    np.testing.assert_allclose(process_of("epsilon").add_noise(normal(0), normal(1), t), expected, atol=1e-6)


def test_noise_and_clean_latents_follow_from_each_other():
    process = process_of("epsilon")
    latents, noise, t = normal(0), normal(1), jnp.array([951, 501, 1], jnp.int32)
    x = process.add_noise(latents, noise, t)
    np.testing.assert_allclose(process.denoised(x, noise, t), latents, atol=1e-4)
    np.testing.assert_allclose(process.noise_in(x, latents, t), noise, atol=1e-4)


def test_bfloat16_predictions_are_converted_to_float32():
    process = process_of("epsilon")
    x0, eps = process.split(normal(0).astype(jnp.bfloat16), normal(1).astype(jnp.bfloat16), jnp.int32(501))
    assert x0.dtype == eps.dtype == jnp.float32


def test_without_eta_a_step_is_deterministic():
    process = process_of("epsilon")
    _, std = process.step(normal(0), normal(1), jnp.array([951, 501, 1], jnp.int32), 0.0)
    assert std.shape == (3, 1, 1, 1) and not std.any()


def test_the_log_probability_of_a_sample_is_the_gaussian_s():
    """A mean over pixels, not a sum; also at the last step, which leads to t = 0."""
    process = process_of("epsilon")
    t = jnp.array([951, 501, 1], jnp.int32)
    mean, std = process.step(*process.split(normal(0), normal(1), t), t, 1.0)
    sample = mean + std * normal(2)
    expected = jax.scipy.stats.norm.logpdf(sample, mean, std).mean((1, 2, 3))
    found = log_prob(sample, mean, std)
    assert found.shape == (3,)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # What is left without log σ + ½ log 2π is half the mean square of the noise, at every timestep.
    constant = jnp.log(std).reshape(3) + 0.5 * jnp.log(2 * jnp.pi)
    np.testing.assert_allclose(-(found + constant), (normal(2) ** 2).mean((1, 2, 3)) / 2, rtol=1e-3)


def test_the_log_probability_is_greatest_at_the_mean():
    process = process_of("epsilon")
    t = jnp.array([951, 501, 1], jnp.int32)
    mean, std = process.step(*process.split(normal(0), normal(1), t), t, 1.0)
    slope = jax.grad(lambda x: log_prob(x, mean, std).sum())(mean)
    assert not slope.any()
    for seed in range(3):
        assert (log_prob(mean + 1e-2 * std * normal(seed), mean, std) < log_prob(mean, mean, std)).all()


def test_pools_have_leading_axes():
    """Candidates [k b h w c] share a timestep; each row is what it is alone."""
    process = process_of("epsilon")
    x, prediction = normal(0, (4, *SHAPE)), normal(1, (4, *SHAPE))
    mean, std = process.step(*process.split(x, prediction, jnp.int32(501)), jnp.int32(501), 1.0)
    probability = log_prob(x, mean, std)
    assert probability.shape == (4, 3)
    one = process.step(*process.split(x[2], prediction[2], jnp.int32(501)), jnp.int32(501), 1.0)
    np.testing.assert_allclose(mean[2], one[0], rtol=1e-6)
    np.testing.assert_allclose(probability[2], log_prob(x[2], *one), rtol=1e-6)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_trajectory_from_zero_snr_equals_diffusers(prediction_type, steps, eta):
    """With its noise, all steps except the last, which SPO ends elsewhere than diffusers."""
    fields = ZERO_SNR | {"prediction_type": prediction_type}
    theirs, process = DDIMScheduler(clip_sample=False, **fields), make_ddpm(ScheduleConfig(**fields), steps)
    theirs.set_timesteps(steps)
    assert process.alphas_cumprod[process.timesteps[0]] == 0
    x = normal(0)
    for i, t in enumerate(process.timesteps[:-1]):
        prediction, noise, before = jnp.tanh(x * (0.5 + t / 1000)), normal(i + 1), to_torch(x)
        x0, eps = process.split(x, prediction, jnp.int32(t))
        mean, std = process.step(x0, eps, jnp.int32(t), eta)
        x = mean + std * noise
        assert jnp.isfinite(x).all()
        step = theirs.step(to_torch(prediction), int(t), before, eta=eta, variance_noise=to_torch(noise))
        atol = 1e-5  # a few roundings of values up to 4
        if i == 0 and eta == 1:
            # Nothing of eps is left in this step: its factor is the root of a rounding, which differs between machines.
            if step.prev_sample.isnan().all():  # theirs is of -6e-8
                continue
            atol += np.sqrt(2.0**-23) * float(jnp.abs(eps).max())
        np.testing.assert_allclose(x, step.prev_sample, atol=atol)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_step_from_zero_snr_is_a_gaussian_with_gradients(prediction_type):
    """For all numbers of steps, a row each: the rounding of a single one decides whether a root is taken of -6e-8."""
    processes = [make_ddpm(ScheduleConfig(**ZERO_SNR | {"prediction_type": prediction_type}), n) for n in range(2, 61)]
    assert all(process.timesteps[0] == 999 for process in processes)
    strides = jnp.array([process.stride for process in processes])
    count = len(processes)

    class AllOfThem(DDPM):
        def previous(self, t):
            return jnp.maximum(t - strides, 0)

    process = AllOfThem(**vars(processes[0]))
    x, sample, prediction = (
        normal(0, (count, *SHAPE[1:])),
        normal(2, (count, *SHAPE[1:])),
        normal(1, (count, *SHAPE[1:])),
    )
    t = jnp.full(count, 999)

    @jax.jit
    def found(prediction):
        mean, std = process.step(*process.split(x, prediction, t), t, 1.0)
        probability = log_prob(sample, mean, std)
        return probability.sum(), (probability, mean, std)

    (_, (probability, mean, std)), slope = jax.value_and_grad(found, has_aux=True)(prediction)
    assert jnp.isfinite(probability).all() and jnp.isfinite(mean).all() and (std > 0).all()
    assert jnp.isfinite(slope).all() and slope.any((1, 2, 3)).all()


def test_it_is_what_methods_expect():
    assert isinstance(process_of("epsilon"), Process)
