"""A stochastic DDIM step: against diffusers, and as the Gaussian that it claims to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler


from spo_jax.diffusion.process import log_prob
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.diffusion.ddpm import make_ddpm

SD15 = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1)
# As models without any signal at the last training timestep are published: ᾱ is 0 at the first sampling step.
ZERO_SNR = SD15 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SHAPE = (3, 4, 5, 2)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def schedule_of(prediction_type, steps=20):
    return make_ddpm(ScheduleConfig.from_dict(SD15 | {"prediction_type": prediction_type}), steps)


def to_torch(x):
    return torch.from_numpy(np.array(x))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_equals_diffusers(prediction_type, eta):
    """Layout does not matter to a step, so torch gets our arrays as they are."""
    theirs = DDIMScheduler(clip_sample=False, prediction_type=prediction_type, **SD15)
    theirs.set_timesteps(20)
    schedule = schedule_of(prediction_type)
    x, prediction, noise = normal(0), normal(1), normal(2)
    for t in (951, 501, 1):
        x0, eps = schedule.split(x, prediction, jnp.int32(t))
        mean, std = schedule.step(x0, eps, jnp.int32(t), eta)
        step = theirs.step(to_torch(prediction), t, to_torch(x), eta=eta, variance_noise=to_torch(noise))
        scale = float(np.abs(step.pred_original_sample).max())
        np.testing.assert_allclose(x0, step.pred_original_sample, atol=2e-6 * scale)
        np.testing.assert_allclose(mean + std * noise, step.prev_sample, atol=2e-6 * scale)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_exact_prediction_gives_back_what_was_noised(prediction_type):
    """One timestep for all, and one per row."""
    schedule = schedule_of(prediction_type)
    x0, eps = normal(0), normal(1)
    for t in (jnp.int32(501), jnp.array([951, 501, 251], jnp.int32)):
        a = jnp.asarray(schedule.alphas_cumprod)[t].reshape(-1, 1, 1, 1)
        x = schedule.add_noise(x0, eps, t)
        exact = {"epsilon": eps, "sample": x0, "v_prediction": jnp.sqrt(a) * eps - jnp.sqrt(1 - a) * x0}
        found = schedule.split(x, exact[prediction_type], t)
        np.testing.assert_allclose(found[0], x0, atol=2e-5)
        np.testing.assert_allclose(found[1], eps, atol=2e-5)


def test_add_noise_equals_diffusers():
    theirs = DDIMScheduler(clip_sample=False, **SD15)
    t = jnp.array([951, 501, 1], jnp.int32)
    expected = theirs.add_noise(to_torch(normal(0)), to_torch(normal(1)), torch.tensor([951, 501, 1]))
    np.testing.assert_allclose(schedule_of("epsilon").add_noise(normal(0), normal(1), t), expected, atol=1e-6)


def test_bfloat16_predictions_are_worked_on_in_float32():
    schedule = schedule_of("epsilon")
    x0, eps = schedule.split(normal(0).astype(jnp.bfloat16), normal(1).astype(jnp.bfloat16), jnp.int32(501))
    assert x0.dtype == eps.dtype == jnp.float32


def test_without_eta_a_step_is_certain():
    schedule = schedule_of("epsilon")
    _, std = schedule.step(normal(0), normal(1), jnp.array([951, 501, 1], jnp.int32), 0.0)
    assert std.shape == (3, 1, 1, 1) and not std.any()


def test_the_log_probability_of_a_sample_is_the_gaussians():
    """A mean over pixels, not a sum; at the last step too, which goes to t = 0."""
    schedule = schedule_of("epsilon")
    t = jnp.array([951, 501, 1], jnp.int32)
    mean, std = schedule.step(*schedule.split(normal(0), normal(1), t), t, 1.0)
    sample = mean + std * normal(2)
    expected = jax.scipy.stats.norm.logpdf(sample, mean, std).mean((1, 2, 3))
    found = log_prob(sample, mean, std)
    assert found.shape == (3,)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # log σ + ½ log 2π below it is half the mean square of the noise, whatever the timestep.
    constant = jnp.log(std).reshape(3) + 0.5 * jnp.log(2 * jnp.pi)
    np.testing.assert_allclose(-(found + constant), (normal(2) ** 2).mean((1, 2, 3)) / 2, rtol=1e-3)


def test_the_log_probability_is_greatest_at_the_mean():
    schedule = schedule_of("epsilon")
    t = jnp.array([951, 501, 1], jnp.int32)
    mean, std = schedule.step(*schedule.split(normal(0), normal(1), t), t, 1.0)
    slope = jax.grad(lambda x: log_prob(x, mean, std).sum())(mean)
    assert not slope.any()
    for seed in range(3):
        assert (log_prob(mean + 1e-2 * std * normal(seed), mean, std) < log_prob(mean, mean, std)).all()


def test_pools_have_leading_axes():
    """Candidates [k b h w c] share a timestep; each row is what it is alone."""
    schedule = schedule_of("epsilon")
    x, prediction = normal(0, (4, *SHAPE)), normal(1, (4, *SHAPE))
    mean, std = schedule.step(*schedule.split(x, prediction, jnp.int32(501)), jnp.int32(501), 1.0)
    probability = log_prob(x, mean, std)
    assert probability.shape == (4, 3)
    one = schedule.step(*schedule.split(x[2], prediction[2], jnp.int32(501)), jnp.int32(501), 1.0)
    np.testing.assert_allclose(mean[2], one[0], rtol=1e-6)
    np.testing.assert_allclose(probability[2], log_prob(x[2], *one), rtol=1e-6)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_trajectory_from_zero_snr_equals_diffusers(prediction_type, steps, eta):
    """With its noise, all steps but the last, which in SPO ends elsewhere than in diffusers."""
    fields = ZERO_SNR | {"prediction_type": prediction_type}
    theirs, schedule = DDIMScheduler(clip_sample=False, **fields), make_ddpm(ScheduleConfig(**fields), steps)
    theirs.set_timesteps(steps)
    assert schedule.alphas_cumprod[schedule.timesteps[0]] == 0
    x = normal(0)
    for i, t in enumerate(schedule.timesteps[:-1]):
        prediction, noise, before = jnp.tanh(x * (0.5 + t / 1000)), normal(i + 1), to_torch(x)
        x0, eps = schedule.split(x, prediction, jnp.int32(t))
        mean, std = schedule.step(x0, eps, jnp.int32(t), eta)
        x = mean + std * noise
        assert jnp.isfinite(x).all()
        step = theirs.step(to_torch(prediction), int(t), before, eta=eta, variance_noise=to_torch(noise))
        atol = 1e-5  # a few roundings of numbers up to 4
        if i == 0 and eta == 1:
            # Nothing of eps is left in this step: its factor is the root of a rounding, which differs between machines.
            if step.prev_sample.isnan().all():  # theirs is of -6e-8
                continue
            atol += np.sqrt(2.0**-23) * float(jnp.abs(eps).max())
        np.testing.assert_allclose(x, step.prev_sample, atol=atol)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_step_from_zero_snr_is_a_gaussian_with_gradients(prediction_type):
    """For all numbers of steps: the rounding of a single one decides whether a root is taken of -6e-8."""
    for steps in range(2, 61):
        schedule = make_ddpm(ScheduleConfig(**ZERO_SNR | {"prediction_type": prediction_type}), steps)
        t = jnp.asarray(schedule.timesteps[:1])

        def found(prediction, schedule=schedule, t=t):
            mean, std = schedule.step(*schedule.split(normal(0), prediction, t), t, 1.0)
            return log_prob(normal(2), mean, std).sum(), (mean, std)

        (probability, (mean, std)), slope = jax.value_and_grad(found, has_aux=True)(normal(1))
        assert jnp.isfinite(probability) and jnp.isfinite(mean).all() and (std > 0).all()
        assert jnp.isfinite(slope).all() and slope.any()
