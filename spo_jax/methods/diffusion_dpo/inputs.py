"""What the loss of a chunk of pairs is computed from; nothing of it is differentiated."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.rows import joined_rows
from spo_jax.core.typing import Array, Bool, Float, Int, Key, PyTree
from spo_jax.diffusion.process import Process
from spo_jax.methods.diffusion_dpo.inversion import Denoise, invert
from spo_jax.methods.diffusion_dpo.settings import DPOSettings


class Draws(NamedTuple):
    """Everything random about a batch of pairs, drawn for the whole batch before it is cut into chunks.

    Attributes:
      t: timestep of each pair.
      dropped: whether the pair is trained without its caption.
      noise: noise of each pair, the same for both images; None if an inversion recovers it.
      posterior: noise of draws from the autoencoder's posterior, separate for both images; None takes its mean.
      steps: noise of each image at each step of an inversion; None if it adds none.
    """

    t: Int[Array, " n"]
    dropped: Bool[Array, " n"]
    noise: Float[Array, "n h w c"] | None = None
    posterior: Float[Array, "n 2 h w c"] | None = None
    steps: Float[Array, "n 2 s h w c"] | None = None


class Inputs(NamedTuple):
    """The pairs of a chunk; in axes of size 2 the winner comes first.

    Attributes:
      x: noisy latents x_t of both images.
      target: what a perfect network predicts from them.
      t: timestep of each pair.
      condition: encoded captions.
      weight: smoothed label of each pair.
      reference: errors of the reference; None if the loss has none.
    """

    x: Float[Array, "n 2 h w c"]
    target: Float[Array, "n 2 h w c"]
    t: Int[Array, " n"]
    condition: PyTree
    weight: Float[Array, " n"]
    reference: Float[Array, "n 2"] | None = None


def draw(
    key: Key, count: int, latent_shape: tuple[int, int, int], timesteps: int, dropout: float, sample: bool,
    settings: DPOSettings,
) -> Draws:  # fmt: skip
    """Draws everything random about a batch of pairs.

    Args:
      key: key of the batch.
      count: number of pairs.
      latent_shape: (h, w, c).
      timesteps: number of training timesteps, among which t is uniform.
      dropout: share of pairs without their caption.
      sample: whether latents are draws from the autoencoder's posterior; otherwise they are its mean.
      settings: what the noise is used for.
    """
    t_key, dropout_key, noise_key, posterior_key, step_key = jax.random.split(key, 5)
    stochastic = settings.inversion == "ddim" and settings.inversion_eta > 0
    walk = (count, 2, settings.inversion_steps, *latent_shape)
    return Draws(
        jax.random.randint(t_key, (count,), 0, timesteps),
        jax.random.bernoulli(dropout_key, dropout, (count,)),
        jax.random.normal(noise_key, (count, *latent_shape)) if settings.inversion == "none" else None,
        jax.random.normal(posterior_key, (count, 2, *latent_shape)) if sample else None,
        jax.random.normal(step_key, walk) if stochastic else None,
    )


def noised(
    process: Process, latents: Float[Array, "n 2 h w c"], t: Int[Array, " n"], noise: Float[Array, "n h w c"]
) -> tuple[Float[Array, "n 2 h w c"], Float[Array, "n 2 h w c"]]:
    """Adds the pair's noise to both of its images; returns x_t and the targets."""
    shared = jnp.repeat(noise, 2, axis=0)
    times = jnp.repeat(t, 2)
    x = process.add_noise(joined_rows(latents), shared, times)
    target = process.target(joined_rows(latents), shared, times)
    return x.reshape(latents.shape), target.reshape(latents.shape)


def inverted(
    denoise: Denoise, process: Process, settings: DPOSettings, latents: Float[Array, "n 2 h w c"], draws: Draws
) -> tuple[Float[Array, "n 2 h w c"], Float[Array, "n 2 h w c"]]:
    """Recovers the noise of each image by itself; returns what is taken for x_t and the targets.

    Args:
      denoise: the policy's prediction for the rows that `joined_rows` gives.
      process: the diffusion process, divided into the steps of the inversion.
      settings: the kind of inversion.
      latents: clean latents.
      draws: timesteps, and noise of the steps if there is any.
    """
    times = jnp.repeat(draws.t, 2)
    steps = None if draws.steps is None else jnp.moveaxis(joined_rows(draws.steps), 1, 0)  # [n 2 s ...] -> [s 2n ...]
    found = invert(denoise, process, settings.inversion, joined_rows(latents), times, steps, settings.inversion_eta)
    target = process.target(joined_rows(latents), found.noise, times)
    return found.x.reshape(latents.shape), target.reshape(latents.shape)
