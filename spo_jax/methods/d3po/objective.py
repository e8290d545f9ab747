"""The objective of D3PO (arXiv 2311.13231) of each step of a pair, and the pair's preference."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float


class ObjectiveOutput(NamedTuple):
    """The loss of each step and, for the curves, its likelihood ratios.

    Attributes:
      loss: loss.
      ratio: ratios to the reference of both trajectories, before clipping.
    """

    loss: Float[Array, " n"]
    ratio: Float[Array, "n 2"]


def preferences(scores: Float[Array, "b 2 r"]) -> Float[Array, "b 2"]:
    """Returns h: (1, -1) if the first image of a pair is preferred, (-1, 1) if the second, and (0, 0) for a tie.

    With several scores, an image is preferred if it is worse in none of them and better in one (Pareto dominance).
    """
    first, second = scores[:, 0], scores[:, 1]

    def beats(one: Array, other: Array) -> Array:
        return (one >= other).all(1) & (one > other).any(1)

    h = beats(first, second).astype(jnp.float32) - beats(second, first)
    return jnp.stack([h, -h], axis=1)


def d3po_loss(
    logp: Float[Array, "n 2"],
    ref_logp: Float[Array, "n 2"],
    preference: Float[Array, "n 2"],
    *,
    beta: float,
    eps: float,
) -> ObjectiveOutput:
    """Computes L = -log σ(β Σ_k h_k log clip(r_k, 1 - ε, 1 + ε)), where r_k = exp(log p_θ - log p_ref).

    A tie has the loss log 2 and no gradient, but counts in the mean. Nor is there a gradient through a ratio that is
    clipped.

    Args:
      logp: the policy's log-probability of the step of both trajectories, in float32: a mean over pixels, not a sum.
      ref_logp: that of the reference.
      preference: h, as `preferences` returns it.
      beta: β, factor of the log ratios.
      eps: ε, half the width of the clip; between 0 and 1.
    """
    ratio = jnp.exp(logp - ref_logp)
    log_clipped = jnp.log(jnp.clip(ratio, 1 - eps, 1 + eps))
    return ObjectiveOutput(-jax.nn.log_sigmoid(beta * (preference * log_clipped).sum(1)), ratio)
