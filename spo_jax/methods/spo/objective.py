"""The SPO objective (arXiv 2406.04314), per pair; averages are the caller's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float


class ObjectiveOutput(NamedTuple):
    """Loss and, for the curves, the ratios before the clip."""

    loss: Float[Array, " n"]
    ratio_win: Float[Array, " n"]
    ratio_lose: Float[Array, " n"]


def spo_loss(
    logp_win: Float[Array, " n"],
    logp_lose: Float[Array, " n"],
    ref_logp_win: Float[Array, " n"],
    ref_logp_lose: Float[Array, " n"],
    *,
    beta: float,
    eps: float,
) -> ObjectiveOutput:
    """L = -log σ(β (log r_w - log r_l)), r = clip(exp(log p_θ - log p_ref), 1 - ε, 1 + ε).

    The clip is inside the log: a member that has moved far enough gets no gradient. Log-probabilities are means over
    pixels (`spo_jax.diffusion.process.log_prob`), float32.
    """
    ratio_win = jnp.exp(logp_win - ref_logp_win)
    ratio_lose = jnp.exp(logp_lose - ref_logp_lose)

    def log_clipped(ratio: Array) -> Array:
        return jnp.log(jnp.clip(ratio, 1 - eps, 1 + eps))

    loss = -jax.nn.log_sigmoid(beta * (log_clipped(ratio_win) - log_clipped(ratio_lose)))
    return ObjectiveOutput(loss, ratio_win, ratio_lose)
