"""LPO's loss is SPO's with a larger β: values, and the cases in which LPO's own code is infinite."""

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.methods.spo.objective import spo_loss
from tests.golden import rivals as compare


def test_loss(rivals):
    case = rivals.case("lpo_loss")
    log_probs = [jnp.asarray(case[name]) for name in ("logp_win", "logp_lose", "logp_ref_win", "logp_ref_lose")]
    beta, eps = case.number("beta"), case.number("clip_eps")
    out = spo_loss(*log_probs, beta=beta, eps=eps)
    for ratio, name in ((out.ratio_win, "ratio_win"), (out.ratio_lose, "ratio_lose")):
        compare.assert_close(np.clip(ratio, 1 - eps, 1 + eps), case[name], compare.LOSS)
    np.testing.assert_allclose(out.loss, case["loss_per_sample"], atol=compare.LOSS_OF_NETWORK)


def test_losses_of_clipped_ratios_are_finite(rivals):
    """With log(sigmoid(x)) in place of log-sigmoid they are infinite in float32."""
    case = rivals.case("lpo_loss")
    beta, eps = case.number("beta"), case.number("clip_eps")

    def loss(win, lose):
        zeros = jnp.zeros_like(win)
        out = spo_loss(win, lose, zeros, zeros, beta=beta, eps=eps)
        return out.loss.sum(), out.loss

    ratios = jnp.asarray(case["extreme_logr_win"]), jnp.asarray(case["extreme_logr_lose"])
    (_, losses), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*ratios)
    np.testing.assert_allclose(losses, case["extreme_loss_per_sample_exact"], rtol=1e-4, atol=1e-6)
    for gradient, name in zip(gradients, ("win", "lose"), strict=True):
        np.testing.assert_allclose(gradient, case[f"extreme_grad_{name}_original"], rtol=1e-3, atol=1e-6)
