"""The noise of an image, recovered by walking the sampler backwards from the image, in place of noise that is drawn.

DDIM inversion goes up the sampling steps τ of a coarse grid, as long as τ < t: with a = ᾱ at the grid's previous
timestep (ᾱ_0 below the first), b = ᾱ_τ, and the network evaluated at the latents below with the timestep τ above,

    move(x, e) = √b (x - √(1-a) e) / √a + √(1-b) e

- ``ddim`` (InPO): e = ε(x, τ); x ← move(x, e) + η √var z, where var is the variance of the sampler's own step between
  the two timesteps and z is drawn.
- ``renoise`` (SmPO): e₁ = ε(x, τ), e₂ = ε(move(x, e₁), τ); x ← move(x, (e₁ + e₂) / 2).

The walk ends at the last grid timestep below t, and what it ends with is taken for x_t although that timestep is lower:
so it is in the released code. At t below the first grid timestep x_t is the image itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int
from spo_jax.diffusion.process import Process

# Function from (x [n h w c], t [n]) to the network's prediction, without guidance.
Denoise = Callable[[Array, Array], Float[Array, "n h w c"]]


class Inverted(NamedTuple):
    """What an inversion has found.

    Attributes:
      x: latents that are taken for x_t.
      noise: the noise that is in them, if they are x_t.
    """

    x: Float[Array, "n h w c"]
    noise: Float[Array, "n h w c"]


def invert(
    denoise: Denoise,
    process: Process,
    kind: str,
    latents: Float[Array, "n h w c"],
    t: Int[Array, " n"],
    noise: Float[Array, "s n h w c"] | None = None,
    eta: float = 0.0,
) -> Inverted:
    """Recovers the noise of images; each image has a timestep of its own.

    Args:
      denoise: prediction of the network.
      process: the diffusion process, divided into the steps of the inversion.
      kind: ``ddim`` or ``renoise``.
      latents: clean latents x0.
      t: timestep of each image.
      noise: z of each step of the grid, from the lowest on; None adds none.
      eta: η, the share of the step's own noise that is added.
    """
    lowest_first = process.timesteps[::-1]
    grid = jnp.asarray(lowest_first.copy())
    above = jnp.asarray(_timesteps_above(lowest_first, process.num_train_timesteps))
    step = {"ddim": _ddim, "renoise": _renoise}[kind]

    def body(index: Array, x: Array) -> Array:
        tau = jnp.full(len(x), grid[index])
        x0, e = step(denoise, process, x, tau)
        moved = process.add_noise(x0, e, tau)
        if noise is not None:
            _, deviation = process.step(x0, e, jnp.full(len(x), above[index]), 1.0)
            moved += eta * deviation * noise[index]
        return jnp.where((tau < t).reshape(-1, 1, 1, 1), moved, x)

    # Steps above the highest timestep of these images are not computed.
    x = jax.lax.fori_loop(0, (grid < t.max()).sum(), body, latents)
    return Inverted(x, process.noise_in(x, latents, t))


def _ddim(denoise: Denoise, process: Process, x: Array, tau: Array) -> tuple[Array, Array]:
    """Returns clean latents and noise, as the network sees them from below ``tau``."""
    return process.split(x, denoise(x, tau), process.previous(tau))


def _renoise(denoise: Denoise, process: Process, x: Array, tau: Array) -> tuple[Array, Array]:
    """Returns the same with the mean of two predictions of the noise: from below ``tau``, and from where that leads."""
    below = process.previous(tau)
    x0, first = _ddim(denoise, process, x, tau)
    guess = process.add_noise(x0, first, tau)
    _, second = process.split(guess, denoise(guess, tau), tau)
    noise = (first + second) / 2
    return process.denoised(x, noise, below), noise


def _timesteps_above(grid: Int[np.ndarray, " s"], timesteps: int) -> Int[np.ndarray, " s"]:
    """Returns the timestep from which the sampler steps down to each one of the grid."""
    return np.append(grid[1:], min(grid[-1] + timesteps // len(grid), timesteps - 1)).astype(np.int32)
