r"""The losses of pairs, from the errors of the policy's and of the reference's predictions.

An error m is the mean squared difference between a prediction and its target, over pixels and channels. With m_w and
m_l of the policy and r_w and r_l of the reference, for winner and loser, a pair's margin is

    g = (m_l - r_l) - (m_w - r_w)

which is above 0 if the policy has come to predict the winner better than the loser, compared with the reference.

| objective | loss | from |
|---|---|---|
| dpo | -log σ(½ β g) | Diffusion-DPO, arXiv 2311.12908 |
| smpo | -log σ(½ β w g), w the pair's smoothed label | SmPO |
| ipo | (g - 1/(2 β))² | diffusers' example |
| hinge | max(0, 1 - β g) | diffusers' example |
| mapo | m_w - β log σ(T (f(m_w) - f(m_l))), f(m) = s m / (e^{s m} - 1) | MaPO, arXiv 2406.06424 |
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float

MAPO_S = 0.5  # s, a constant in the released code where the paper has a weight of the timestep


class ObjectiveOutput(NamedTuple):
    """What a pair's errors amount to.

    Attributes:
      loss: loss.
      logit: what decides whether the pair counts as ordered right: above 0 it is, at 0 it is half.
    """

    loss: Float[Array, " n"]
    logit: Float[Array, " n"]


def margins(policy: Float[Array, "n 2"], reference: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Computes g = (m_l - r_l) - (m_w - r_w), whose columns are winner and loser."""
    change = policy - reference
    return change[:, 1] - change[:, 0]


def objective(
    name: str,
    policy: Float[Array, "n 2"],
    reference: Float[Array, "n 2"] | None,
    weight: Float[Array, " n"],
    beta: float,
    timesteps: int = 1000,
) -> ObjectiveOutput:
    """Computes the loss of each pair.

    Args:
      name: the objective.
      policy: errors m of winner and loser.
      reference: errors r of winner and loser; None for mapo.
      weight: smoothed labels; only smpo reads them.
      beta: β.
      timesteps: T of mapo, the number of training timesteps.
    """
    if name == "mapo":
        score = mapo_score(policy)
        odds = score[:, 0] - score[:, 1]
        return ObjectiveOutput(policy[:, 0] - beta * jax.nn.log_sigmoid(timesteps * odds), odds)
    gain = margins(policy, reference)
    if name == "ipo":
        return ObjectiveOutput(jnp.square(gain - 1 / (2 * beta)), gain)
    if name == "hinge":
        return ObjectiveOutput(jax.nn.relu(1 - beta * gain), gain)
    logit = 0.5 * beta * gain * (weight if name == "smpo" else 1.0)
    return ObjectiveOutput(-jax.nn.log_sigmoid(logit), logit)


def mapo_score(error: Float[Array, "*b"], s: float = MAPO_S) -> Float[Array, "*b"]:
    """Computes f(m) = s m / (e^{s m} - 1), which falls from 1 at m = 0; expm1 keeps it exact for small m."""
    scaled = s * error
    safe = jnp.where(scaled > 0, scaled, 1.0)
    return jnp.where(scaled > 0, safe / jnp.expm1(safe), 1.0)


def ordered_right(logit: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns 1 for pairs whose logit is above 0, ½ at 0, where policy and reference agree, and 0 below."""
    return 0.5 * (1 + jnp.sign(logit))
