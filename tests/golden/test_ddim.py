"""DDIM steps and their log-probabilities (a), and the preference model's training schedule (a2).

float32 on both sides; 1e-5 relative leaves room for another order of operations, 2e-4 for log-probabilities, where
(x - mean)² / std² amplifies rounding at the last steps, whose std is about 0.02.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.process import log_prob
from spo_jax.diffusion.schedule import ScheduleConfig

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def process_of(prediction_type: str, steps: int = 20):
    return make_ddpm(ScheduleConfig.from_dict({**SD, "prediction_type": prediction_type}), steps)


def test_schedule(golden):
    a = golden.arrays("a_ddim.npz")
    process = process_of("epsilon")
    np.testing.assert_array_equal(process.timesteps, a["timesteps"])
    np.testing.assert_array_equal(process.previous(jnp.asarray(process.timesteps)), a["epsilon/prev_timestep"])
    np.testing.assert_allclose(process.alphas_cumprod, a["alphas_cumprod"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_step(golden, kind, eta):
    a = golden.arrays("a_ddim.npz")
    process = process_of(kind)
    nhwc = golden.nhwc
    sample, output, noise = (nhwc(a[name]) for name in ("sample", "model_output", "noise"))
    for index, t in enumerate(a["timesteps"]):
        x0, eps = process.split(sample, output, jnp.asarray(t))
        mean, std = process.step(x0, eps, jnp.asarray(t), eta)
        expected = {name: a[f"{kind}/eta{eta}/{name}"][index] for name in ("std", "prev_sample", "logprob")}
        assert golden.relative_error(x0, nhwc(a[f"{kind}/x0"][index])) < 1e-5
        assert golden.relative_error(std.reshape(()), expected["std"]) < 1e-5
        assert golden.relative_error(mean + std * noise, nhwc(expected["prev_sample"])) < 1e-5
        if eta == 1.0:
            assert golden.relative_error(mean, nhwc(a[f"{kind}/eta1.0/prev_mean"][index])) < 1e-5
        if kind == "v_prediction":
            assert golden.relative_error(eps, nhwc(a["v_prediction/pred_epsilon"][index])) < 1e-5
        prev = nhwc(expected["prev_sample"])
        np.testing.assert_allclose(log_prob(prev, mean, std), expected["logprob"], rtol=2e-4, atol=2e-4)
        other = log_prob(nhwc(a["noise_k3"][1]), mean, std)
        np.testing.assert_allclose(other, a[f"{kind}/eta{eta}/logprob_unrelated_prev"][index], rtol=2e-4)
        other_output = output + 0.01 * nhwc(a["noise_k3"][0])
        moved = process.step(*process.split(sample, other_output, jnp.asarray(t)), jnp.asarray(t), eta)
        perturbed = a[f"{kind}/eta{eta}/logprob_perturbed_model_output"][index]
        np.testing.assert_allclose(log_prob(prev, *moved), perturbed, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [751, 451, 1])
def test_three_candidates(golden, kind, t):
    a = golden.arrays("a_ddim.npz")
    process = process_of(kind)
    nhwc = golden.nhwc
    x0, eps = process.split(nhwc(a["sample"]), nhwc(a["model_output"]), jnp.asarray(t))
    mean, std = process.step(x0, eps, jnp.asarray(t), 1.0)
    candidates = mean[None] + std[None] * nhwc(a["noise_k3"])
    assert golden.relative_error(candidates, nhwc(a[f"{kind}/k3_prev_t{t}"])) < 1e-5


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_mixed_timesteps_and_gradient(golden, kind):
    a = golden.arrays("a_ddim.npz")
    process = process_of(kind)
    nhwc = golden.nhwc
    sample = nhwc(a["sample"])
    t = jnp.asarray(a["mixed_timesteps"])
    prev = nhwc(a[f"{kind}/mixed_prev_sample"])

    def log_probs(output, prev):
        x0, eps = process.split(sample, output, t)
        return log_prob(prev, *process.step(x0, eps, t, 1.0))

    output = nhwc(a["model_output"])
    x0, _ = process.split(sample, output, t)
    assert golden.relative_error(x0, nhwc(a[f"{kind}/mixed_x0"])) < 1e-5
    np.testing.assert_allclose(log_probs(output, prev), a[f"{kind}/mixed_logprob"], rtol=2e-4, atol=2e-4)
    moved = log_probs(output, prev + 0.01)
    np.testing.assert_allclose(moved, a[f"{kind}/mixed_logprob_plus001"], rtol=2e-4, atol=2e-4)
    gradient = jax.grad(lambda output: log_probs(output, prev + 0.01)[:3].sum())(output)
    assert golden.relative_error(gradient, nhwc(a[f"{kind}/mixed_logprob_grad_model_output"])) < 1e-3


def test_preference_model_schedule(golden):
    a = golden.arrays("a2_spm_train_scheduler.npz")
    nhwc = golden.nhwc
    process = process_of("epsilon", 20)
    t = jnp.asarray(a["timesteps"])
    noisy = process.add_noise(nhwc(a["clean_latents"]), nhwc(a["noise"]), t)
    assert golden.relative_error(noisy, nhwc(a["noisy"])) < 1e-6
    x0, _ = process.split(nhwc(a["noisy"]), nhwc(a["model_output"]), t)
    assert golden.relative_error(x0, nhwc(a["pred_original_sample"])) < 1e-5
