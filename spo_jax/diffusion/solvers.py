"""Deterministic sampling, equal to diffusers' schedulers: one scan serves all solvers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Num
from spo_jax.diffusion.ddpm import split_prediction
from spo_jax.diffusion.steps import SolverRow, SolverSteps

# Function of (latents, timestep) that returns a guided prediction.
Denoise = Callable[[Float[Array, "b h w c"], Num[Array, ""]], Float[Array, "b h w c"]]


def solver_step(
    denoise: Denoise,
    prediction_type: str,
    row: SolverRow,
    x: Float[Array, "b h w c"],
    previous_x0: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Computes x' = α' x0 + σ' eps + e (x0 - previous x0), one step of a solver.

    Here α = √ᾱ and σ = √(1-ᾱ).

    Args:
      denoise: function of (latents, timestep) that returns a guided prediction.
      prediction_type: what the network predicts.
      row: the step's row of the solver's table.
      x: noisy latents.
      previous_x0: x0 of the step before; of no effect in the first step.

    Returns:
      The next latents, and x0, the clean latents that the network predicts here; both in float32.
    """
    x0, eps = split_prediction(prediction_type, x, denoise(x, row.timestep), row.signal, row.noise)
    return row.next_signal * x0 + row.next_noise * eps + row.extrapolation * (x0 - previous_x0), x0


def solve(denoise: Denoise, steps: SolverSteps, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Applies `solver_step` for each row of a solver's table (`solver_steps`).

    Latents stay as the network takes them, of about unit variance. diffusers' Euler holds x / √ᾱ: it multiplies the
    initial noise (``init_noise_sigma``) and divides before every call of the network (``scale_model_input``), which
    cancels except for ``steps.initial_scale``.

    Args:
      denoise: function of (latents, timestep) that returns a guided prediction.
      steps: the solver's table.
      x: initial latents, of unit variance for every solver.

    Returns:
      Finished latents in float32.
    """

    def step(carry, row):
        return solver_step(denoise, steps.prediction_type, row, *carry), None

    x = steps.initial_scale * x.astype(jnp.float32)
    rows = jax.tree.map(jnp.asarray, steps.rows)
    return jax.lax.scan(step, (x, jnp.zeros_like(x)), rows)[0][0]
