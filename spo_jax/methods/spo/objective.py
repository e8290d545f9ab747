"""The SPO objective (arXiv 2406.04314) of each pair; the caller averages over pairs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float


class ObjectiveOutput(NamedTuple):
    """The loss of each pair and, for the curves, its likelihood ratios.

    Attributes:
      loss: loss.
      ratio_win: the winner's ratio to the reference, before clipping.
      ratio_lose: the loser's ratio to the reference, before clipping.
    """

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
    """Computes L = -log σ(β (log r_w - log r_l)), where r = clip(exp(log p_θ - log p_ref), 1 - ε, 1 + ε).

    The clip is inside the logarithm, so a member of a pair that has moved far enough gets no gradient.

    Args:
      logp_win: the policy's log-probability of the winner, in float32: a mean over pixels, not a sum (see
        `spo_jax.diffusion.process.log_prob`).
      logp_lose: the policy's log-probability of the loser.
      ref_logp_win: the reference's log-probability of the winner.
      ref_logp_lose: the reference's log-probability of the loser.
      beta: β, factor of the log ratios.
      eps: ε, half the width of the clip; between 0 and 1.
    """
    ratio_win = jnp.exp(logp_win - ref_logp_win)
    ratio_lose = jnp.exp(logp_lose - ref_logp_lose)

    def log_clipped(ratio: Array) -> Array:
        return jnp.log(jnp.clip(ratio, 1 - eps, 1 + eps))

    loss = -jax.nn.log_sigmoid(beta * (log_clipped(ratio_win) - log_clipped(ratio_lose)))
    return ObjectiveOutput(loss, ratio_win, ratio_lose)
