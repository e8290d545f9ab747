"""SPO on a model without signal at its first sampling step: rollout and update stay finite there.

The toy's first pool branches at that very step, where ᾱ = 0: a division by it would end in every later latent, pair
and gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.methods.spo.resampler import ResamplerConfig, draw
from spo_jax.methods.spo.update import UpdateConfig, collect, init_state, make_optimiser, update

PROCESS = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
)  # fmt: skip
ROLLOUT = ResamplerConfig(num_steps=6, divert_start_step=0, num_candidates=2)
UPDATE = UpdateConfig(train_batch_size=4, learning_rate=1e-2)


def predict(lora, x, t, row):
    time = jnp.reshape(t, (-1,) + (1,) * (x.ndim - 1)) / 2000.0
    base = jnp.tanh(x) * (0.5 + time)
    return base if lora is None else base + jnp.tanh(x) @ lora["to_q"]["lora_A"] @ lora["to_q"]["lora_B"]


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_batch_from_zero_snr_is_finite(prediction_type):
    schedule = make_ddpm(ScheduleConfig(prediction_type=prediction_type, **PROCESS), ROLLOUT.num_steps)
    assert schedule.alphas_cumprod[schedule.timesteps[0]] == 0
    matrix = lambda seed: 0.1 * jax.random.normal(jax.random.key(seed), (3, 3))  # noqa: E731
    state = init_state({"to_q": {"lora_A": matrix(0), "lora_B": matrix(1)}}, make_optimiser(UPDATE))
    draws = draw(jax.random.key(0), ROLLOUT, 2, (4, 4, 3))

    def batch(state, key):
        policy = lambda x, t: predict(state.lora, x, t, 0)  # noqa: E731
        score = lambda latents, t, row: latents.mean((1, 2, 3))  # noqa: E731
        pairs, metrics = collect(policy, score, ROLLOUT, schedule, draws, 0.0, 4)
        return pairs, metrics, *update(state, predict, schedule, UPDATE, pairs, key)

    pairs, metrics, after, more = jax.jit(batch)(state, jax.random.key(1))
    assert (pairs.t == schedule.timesteps[0]).sum() == 2 and metrics["valid_pairs"] == len(pairs.t) == 12
    for leaf in jax.tree.leaves((pairs, metrics, after.lora, more)):
        assert np.isfinite(leaf).all()
    assert more["grad_norm"] > 0


def test_a_network_that_predicts_the_noise_cannot_be_trained_from_there():
    with pytest.raises(UserError, match="prediction_type 'epsilon' with rescale_betas_zero_snr"):
        make_ddpm(ScheduleConfig(**PROCESS), ROLLOUT.num_steps)
