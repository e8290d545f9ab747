"""The objective of DDPO with importance sampling (arXiv 2305.13301) of each step; the caller averages over steps."""

from typing import NamedTuple

import jax.numpy as jnp

from spo_jax.core.typing import Array, Float


class ObjectiveOutput(NamedTuple):
    """The loss of each step and, for the curves, its likelihood ratio.

    Attributes:
      loss: loss.
      ratio: ratio to the policy that drew the step, before clipping.
    """

    loss: Float[Array, " n"]
    ratio: Float[Array, " n"]


def ddpo_loss(
    logp: Float[Array, " n"],
    old_logp: Float[Array, " n"],
    advantage: Float[Array, " n"],
    *,
    clip_range: float,
    adv_clip_max: float,
) -> ObjectiveOutput:
    """Computes L = max(-a r, -a clip(r, 1 - ε, 1 + ε)), where r = exp(log p_θ - log p_old) and a = clip(A, -c, c).

    A step that has moved far enough in the direction of its advantage gets no gradient; one that has moved the other
    way does.

    Args:
      logp: the policy's log-probability of the step, in float32: a mean over pixels, not a sum (see
        `spo_jax.diffusion.process.log_prob`), to which the tiny clip range is tuned.
      old_logp: that of the policy that drew it.
      advantage: A, advantage of the image to which the step belongs.
      clip_range: ε, half the width of the clip.
      adv_clip_max: c, the largest advantage.
    """
    ratio = jnp.exp(logp - old_logp)
    a = jnp.clip(advantage, -adv_clip_max, adv_clip_max)
    return ObjectiveOutput(jnp.maximum(-a * ratio, -a * jnp.clip(ratio, 1 - clip_range, 1 + clip_range)), ratio)
