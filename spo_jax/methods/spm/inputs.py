"""The preference model's inputs in training: clean predictions of noised images, as the resampler will show them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.resizing import resize_bicubic
from spo_jax.core.typing import Array, Bool, Float, Int, Key
from spo_jax.diffusion.process import Process
from spo_jax.parallel.chunks import cut, joined
from spo_jax.rewards.common.clip_score import normalise


class Draws(NamedTuple):
    """Everything random about a batch of pairs, drawn for the whole batch before it is cut into chunks.

    Attributes:
      t: timestep of each pair.
      noise: noise of each pair, the same for both images.
      posterior: noise for draws from the autoencoder's posterior, separate for both images; None takes its mean.
      flip: whether to mirror each pair; None mirrors none.
    """

    t: Int[Array, " n"]
    noise: Float[Array, "n h w c"]
    posterior: Float[Array, "n 2 h w c"] | None = None
    flip: Bool[Array, " n"] | None = None


def draw(
    key: Key, count: int, latent_shape: tuple[int, int, int], timesteps: int, power: float, sample: bool, flip: bool
) -> Draws:
    """Draws everything random about a batch of pairs.

    Args:
      key: key of the batch.
      count: number of pairs.
      latent_shape: (h, w, c).
      timesteps: number of training timesteps.
      power: exponent in t = floor(timesteps · u^power), where u is uniform.
      sample: whether latents are draws from the autoencoder's posterior; otherwise they are its mean.
      flip: whether to mirror half of the pairs.
    """
    t_key, noise_key, posterior_key, flip_key = jax.random.split(key, 4)
    u = jax.random.uniform(t_key, (count,))
    t = jnp.minimum(jnp.floor(timesteps * u**power), timesteps - 1).astype(jnp.int32)
    return Draws(
        t,
        jax.random.normal(noise_key, (count, *latent_shape)),
        jax.random.normal(posterior_key, (count, 2, *latent_shape)) if sample else None,
        jax.random.bernoulli(flip_key, 0.5, (count,)) if flip else None,
    )


def training_pixels(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """Makes CLIP's input as the reference does in training.

    Unlike `spo_jax.rewards.common.clip_score.pixel_values`, it clamps before AND after resizing, and resizes to a
    square without keeping the aspect ratio.

    Args:
      images: images near [-1, 1].
      side: side of CLIP's input in pixels.
    """
    unit = jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return normalise(jnp.clip(resize_bicubic(unit, (side, side)), 0, 1))


def predictions(
    noise: Float[Array, "n h w c"],
    process: Process,
    denoise: Callable[[Array, Array], Array],
    decode: Callable[[Array], Array],
    latents: Float[Array, "n 2 h w c"],
    t: Int[Array, " n"],
) -> Float[Array, "n 2 H W 3"]:
    """Noises latents, predicts x0 and decodes it; both members of a pair have ONE timestep and the SAME noise.

    Args:
      noise: noise of each pair.
      process: the diffusion process.
      denoise: function from (x [2n h w c], t [2n]) to guided prediction; the two rows of a pair are adjacent.
      decode: function from latents to images.
      latents: clean latents of both images.
      t: timestep of each pair.

    Returns:
      Images near [-1, 1].
    """
    n = len(latents)
    flat = latents.reshape(2 * n, *latents.shape[2:])  # [n 2 h w c] -> [2n h w c]
    both_t = jnp.repeat(t, 2)
    x = process.add_noise(flat, jnp.repeat(noise, 2, axis=0), both_t)
    x0, _ = process.split(x, denoise(x, both_t), both_t)
    # Half of the images after the other half: decoding is what takes the most memory of a training step, and half as
    # many images take half of it.
    images = joined(jax.lax.map(decode, cut(x0, n)))
    return images.reshape(n, 2, *images.shape[1:])  # [2n H W 3] -> [n 2 H W 3]
