"""Deterministic sampling for people's pictures, equal to diffusers' schedulers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Num
from spo_jax.diffusion.ddim import predict_x0
from spo_jax.diffusion.schedule import Schedule


def ddim_sample(
    denoise: Callable[[Float[Array, "b h w c"], Num[Array, ""]], Float[Array, "b h w c"]],
    schedule: Schedule,
    x: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """DDIM with eta 0 (diffusers' ``DDIMScheduler``), one scan.

    Unlike SPO's own steps, the last one goes to the schedule's final ᾱ, which is 1 where ``set_alpha_to_one``.

    Args:
      denoise: (latents, timestep) to guided prediction.
      x: initial latents at the first timestep, of unit variance.
    """
    alphas = jnp.asarray(schedule.alphas_cumprod)

    def step(x, t):
        x0, eps = predict_x0(schedule, x, denoise(x, t), t)
        before = t - schedule.stride
        a_prev = jnp.where(before >= 0, alphas[jnp.maximum(before, 0)], schedule.final_alpha_cumprod)
        return jnp.sqrt(a_prev) * x0 + jnp.sqrt(1 - a_prev) * eps, None

    return jax.lax.scan(step, x.astype(jnp.float32), jnp.asarray(schedule.timesteps))[0]
