"""Deterministic sampling, equal to diffusers' schedulers: one scan serves all solvers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Num
from spo_jax.diffusion.ddpm import split_prediction
from spo_jax.diffusion.steps import SolverSteps


def solve(
    denoise: Callable[[Float[Array, "b h w c"], Num[Array, ""]], Float[Array, "b h w c"]],
    steps: SolverSteps,
    x: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Applies x' = α' x0 + σ' eps + e (x0 - previous x0) for each row of a solver's table (`solver_steps`).

    Here α = √ᾱ and σ = √(1-ᾱ). Latents stay as the network takes them, of about unit variance. diffusers' Euler holds
    x / √ᾱ: it multiplies the initial noise (``init_noise_sigma``) and divides before every call of the network
    (``scale_model_input``), which cancels except for ``steps.initial_scale``.

    Args:
      denoise: function of (latents, timestep) that returns a guided prediction.
      steps: the solver's table.
      x: initial latents, of unit variance for every solver.

    Returns:
      Finished latents in float32.
    """
    columns = (steps.signal, steps.noise, steps.next_signal, steps.next_noise, steps.extrapolation)

    def step(carry, row):
        x, previous_x0 = carry
        t, signal, noise, next_signal, next_noise, extrapolation = row
        x0, eps = split_prediction(steps.prediction_type, x, denoise(x, t), signal, noise)
        return (next_signal * x0 + next_noise * eps + extrapolation * (x0 - previous_x0), x0), None

    x = steps.initial_scale * x.astype(jnp.float32)
    rows = tuple(map(jnp.asarray, (steps.timesteps, *columns)))
    return jax.lax.scan(step, (x, jnp.zeros_like(x)), rows)[0][0]
