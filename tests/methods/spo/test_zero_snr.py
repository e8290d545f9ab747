"""SPO on a model without signal at its first sampling step: rollout and update stay finite there.

The first pool branches at that very step, where ᾱ = 0: a division by it would spoil every later latent, pair and
gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spo.resampler import draw
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.methods.spo.update import collect, update

SCHEDULE = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
)  # fmt: skip
SETTINGS = SPOSettings(num_steps=6, divert_start_step=0, num_candidates=2, threshold=0.0, train_batch_size=4)
OPTIMIZER = make_optimizer(OptimizerSettings(learning_rate=1e-2))


def predict(lora, x, t, row):
    time = jnp.reshape(t, (-1,) + (1,) * (x.ndim - 1)) / 2000.0
    base = jnp.tanh(x) * (0.5 + time)
    return base if lora is None else base + jnp.tanh(x) @ lora["to_q"]["lora_A"] @ lora["to_q"]["lora_B"]


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_batch_from_zero_snr_is_finite(prediction_type):
    process = make_ddpm(ScheduleConfig(prediction_type=prediction_type, **SCHEDULE), SETTINGS.num_steps)
    assert process.alphas_cumprod[process.timesteps[0]] == 0

    def matrix(seed):
        return 0.1 * jax.random.normal(jax.random.key(seed), (3, 3))

    @jax.jit
    def batch(key):
        state = init_state({"to_q": {"lora_A": matrix(0), "lora_B": matrix(1)}}, OPTIMIZER)

        def policy(x, t):
            return predict(state.params, x, t, 0)

        def score(latents, t, row):
            return latents.mean((1, 2, 3))

        pairs, metrics = collect(policy, score, SETTINGS, process, draw(key, SETTINGS, 2, (4, 4, 3)))
        return pairs, metrics, *update(state, predict, process, SETTINGS, OPTIMIZER, pairs, key)

    pairs, metrics, after, more = batch(jax.random.key(1))
    assert (pairs.t == process.timesteps[0]).sum() == 2
    assert metrics["valid_pairs"] == len(pairs.t) == 12
    for leaf in jax.tree.leaves((pairs, metrics, after.params, more)):
        assert np.isfinite(leaf).all()
    assert more["grad_norm"] > 0


def test_a_network_that_predicts_the_noise_cannot_be_trained_from_there():
    with pytest.raises(UserError, match="prediction_type 'epsilon' with rescale_betas_zero_snr"):
        make_ddpm(ScheduleConfig(**SCHEDULE), SETTINGS.num_steps)
