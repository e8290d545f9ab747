"""D3PO against its original: preferences, log-probabilities, ratios, loss and gradients of every step."""

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.methods.common.policy import step_log_probs
from spo_jax.methods.d3po.objective import d3po_loss, preferences
from tests.golden import rivals as compare

LOG_PROB = 1e-5  # absolute


def test_preferences(rivals):
    case = rivals.case("d3po")
    np.testing.assert_array_equal(preferences(jnp.asarray(case["rewards"])[..., None]), case["human_prefer"])


def test_several_rewards_prefer_by_dominance(rivals):
    case = rivals.case("d3po")
    rewards = jnp.stack([case["vector_rewards_0"], case["vector_rewards_1"]], axis=1)
    np.testing.assert_array_equal(preferences(rewards), case["human_prefer_vector"])


def test_loss_and_gradients(rivals):
    case = rivals.case("d3po")
    process = rivals.process(int(case.number("num_inference_steps")))
    pairs, steps = case["logp_0"].shape

    def rows(name):  # [2 b s h w c] -> [b·s 2 h w c]
        x = jnp.moveaxis(jnp.asarray(case.images(name)), 0, 2)
        return x.reshape(pairs * steps, 2, *x.shape[3:])

    x_t, x_prev = rows("x_t"), rows("x_prev")
    t = jnp.asarray(case["timesteps"]).reshape(-1)
    preference = jnp.repeat(jnp.asarray(case["human_prefer"]), steps, axis=0)

    def log_probs(eps):  # [b·s 2 h w c] -> [b·s 2]
        flat = eps.reshape(-1, *eps.shape[2:])
        return step_log_probs(lambda x, t, row: flat, process, 1.0, x_t, x_prev, t, jnp.arange(len(t)))

    def loss(eps):
        logp, ref_logp = log_probs(eps), log_probs(rows("eps_ref"))
        out = d3po_loss(logp, ref_logp, preference, beta=case.number("beta"), eps=case.number("clip_eps"))
        return out.loss.mean(), (logp, ref_logp, out)

    (value, (logp, ref_logp, out)), gradient = jax.value_and_grad(loss, has_aux=True)(rows("eps_theta"))
    limit = case.number("clip_eps")
    for member in (0, 1):
        np.testing.assert_allclose(logp[:, member], case[f"logp_{member}"].reshape(-1), atol=LOG_PROB)
        np.testing.assert_allclose(ref_logp[:, member], case[f"logp_ref_{member}"].reshape(-1), atol=LOG_PROB)
        clipped = np.clip(out.ratio[:, member], 1 - limit, 1 + limit)
        np.testing.assert_allclose(clipped, case[f"ratio_{member}"].reshape(-1), atol=2 * LOG_PROB)
    losses = out.loss.reshape(pairs, steps)
    compare.assert_close(losses, case["loss_per_sample"], compare.LOSS)
    compare.assert_close(losses.mean(0), case["loss_per_step"], compare.LOSS)
    compare.assert_close(value, case["loss_mean_over_steps"], compare.LOSS)
    expected = rows("grad_eps_theta")
    ties = np.asarray((preference == 0).all(1))
    assert not np.asarray(gradient)[ties].any()
    for member in (0, 1):
        compare.assert_close(gradient[:, member], expected[:, member], compare.GRADIENT)
