"""Trains the toy autoencoder, which encodes 32 x 32 images to 8 x 8 latents of 16 channels."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.build_toy.fit import fit
from spo_jax.core.typing import Array, Float, Key, Params
from spo_jax.nn.vae import AutoencoderKL, VAEConfig, sample_posterior
from spo_jax.toy import world

CONFIG = VAEConfig(
    block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=16, norm_num_groups=8, sample_size=world.SIZE,
    force_upcast=False,
)  # fmt: skip
STEPS = 3000
BATCH = 32
LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-3
# SD's schedule keeps a trace of the image at the last timestep (ᾱ = 0.0047). If latents are small, the noise hides it,
# so that the model must read the prompt and not the trace.
LATENT_STD = 0.5


def image_batches(seed: int, batch: int) -> Iterator[Float[np.ndarray, "b h w 3"]]:
    """Yields batches of newly drawn images of all prompts without end; the autoencoder sees no prompt."""
    rng = np.random.default_rng(seed)
    while True:
        images, _ = world.draw(rng, rng.choice(world.PROMPTS, batch))
        yield images


def _edges(images: Float[Array, "b h w c"]) -> tuple[Array, Array]:
    """Returns the differences between neighbouring pixels in both directions."""
    return jnp.diff(images, axis=1), jnp.diff(images, axis=2)


def train_autoencoder(seed: int = 0, steps: int = STEPS) -> tuple[VAEConfig, Params]:
    """Trains on absolute, squared and edge differences, with a small KL penalty towards a unit normal.

    Args:
      seed: seed of weights, images and noise.
      steps: number of training steps.

    Returns:
      The config, whose scaling factor gives latents a standard deviation of `LATENT_STD`, and the weights.
    """
    model = AutoencoderKL(CONFIG)

    def loss(params: Params, images: Float[Array, "b h w 3"], key: Key):
        mean, logvar = model.apply(params, images, method="encode")
        recon = model.apply(params, sample_posterior(key, mean, logvar), method="decode")
        error = recon - images
        edges = sum(jnp.abs(a - b).mean() for a, b in zip(_edges(recon), _edges(images), strict=True))
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)
        total = jnp.abs(error).mean() + jnp.square(error).mean() + 0.5 * edges + KL_WEIGHT * kl
        return total, {"loss": total, "psnr": 10 * jnp.log10(4 / jnp.square(error).mean()), "kl": kl}

    # Train.
    batches = image_batches(seed, BATCH)
    params = jax.jit(model.init)(jax.random.key(seed), next(batches))
    params = fit(
        loss, params, batches, steps=steps, learning_rate=LEARNING_RATE, key=jax.random.key(seed + 1), title="VAE"
    )
    # Measure the latents' standard deviation on other images.
    encode = jax.jit(lambda params, images: model.apply(params, images, method="encode"))
    mean, _ = encode(params, next(image_batches(seed + 2, 1024)))
    scaling_factor = round(float(LATENT_STD / jnp.std(mean)), 5)
    return dataclasses.replace(CONFIG, scaling_factor=scaling_factor), params["params"]
