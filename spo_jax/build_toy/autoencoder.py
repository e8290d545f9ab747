"""The embedded autoencoder: 32 x 32 pictures to 8 x 8 latents of 16 channels."""

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
STEPS, BATCH, LEARNING_RATE, KL_WEIGHT = 3000, 32, 2e-3, 1e-3
# SD's schedule keeps a trace of the picture at the last timestep (ᾱ = 0.0047); with small latents it drowns in the
# noise, so that the model has to read the prompt and not the trace.
LATENT_STD = 0.5


def scene_batches(seed: int, batch: int) -> Iterator[Float[np.ndarray, "b h w 3"]]:
    """Endless batches of freshly drawn pictures of all prompts (the autoencoder sees no prompt)."""
    rng = np.random.default_rng(seed)
    while True:
        yield world.draw(rng, rng.choice(world.PROMPTS, batch))[0]


def _edges(images: Float[Array, "b h w c"]) -> tuple[Array, Array]:
    return jnp.diff(images, axis=1), jnp.diff(images, axis=2)


def train_autoencoder(seed: int = 0, steps: int = STEPS) -> tuple[VAEConfig, Params]:
    """Trains on absolute, squared and edge differences with a light pull to a unit normal.

    Returns:
      The config, with the scaling factor that gives latents of standard deviation `LATENT_STD`, and the weights.
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

    batches = scene_batches(seed, BATCH)
    params = jax.jit(model.init)(jax.random.key(seed), next(batches))
    params = fit(
        loss, params, batches, steps=steps, learning_rate=LEARNING_RATE, key=jax.random.key(seed + 1), title="VAE"
    )
    mean, _ = jax.jit(lambda p, x: model.apply(p, x, method="encode"))(params, next(scene_batches(seed + 2, 1024)))
    return dataclasses.replace(CONFIG, scaling_factor=round(float(LATENT_STD / jnp.std(mean)), 5)), params["params"]
