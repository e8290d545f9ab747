"""Latents of a prepared split, computed once and kept on disk, so that training skips the autoencoder's encoder."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Params, UInt8
from spo_jax.data.array_file import ArrayFile
from spo_jax.data.preferences.format.loading import PicturePairs
from spo_jax.methods.common.precompute import fill
from spo_jax.models.stable_diffusion.pipeline import Pipeline
from spo_jax.nn.vae import AutoencoderKL
from spo_jax.parallel.mesh import gathered, spread
from spo_jax.parallel.multihost import join_parts
from spo_jax.weights.digest import weights_digest

FILE = "latents.npy"
_ENCODER = ("encoder", "quant_conv")


@dataclasses.dataclass(frozen=True)
class LatentCache:
    """Latents on disk, not scaled: posterior means, with ``posterior`` log variances behind them; picklable."""

    file: ArrayFile
    posterior: bool

    def pair(self, row: int) -> Float[np.ndarray, "2 h w c"]:
        """Of one pair; what `spo_jax.data.preferences.loading.batches` reads in the place of pictures.

        c is twice the latents' channels with ``posterior``.
        """
        return np.array(self._array[row])

    @functools.cached_property
    def _array(self) -> np.ndarray:
        return self.file.open()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the file themselves; else all of it would travel to them.
        return {name: value for name, value in self.__dict__.items() if name != "_array"}


def model_range(images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Pixels to [-1, 1], float32, in the reference's order of operations."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5


def encode_pairs(
    vae: AutoencoderKL, params: Params, images: UInt8[Array, "n 2 H W 3"]
) -> tuple[Float[Array, "n 2 h w c"], Float[Array, "n 2 h w c"]]:
    """Mean and log variance of the posterior of both pictures of every pair, not scaled."""
    flat = model_range(images).reshape(-1, *images.shape[2:])
    moments = vae.apply({"params": params}, flat, method="encode")
    return tuple(x.reshape(*images.shape[:2], *x.shape[1:]) for x in moments)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _stored(vae: AutoencoderKL, posterior: bool, params: Params, images: UInt8[Array, "n 2 H W 3"]) -> Array:
    mean, logvar = encode_pairs(vae, params, spread(images))
    return gathered(jnp.concatenate([mean, logvar], axis=-1) if posterior else mean)


def latent_file(
    folder: str | os.PathLike, preferences: PicturePairs, pipeline: Pipeline, *, side: int, posterior: bool = False
) -> ArrayFile:
    """Where `latent_cache` keeps latents; arguments as there.

    Raises:
      UserError: the folder holds latents of other data, another autoencoder, size or type; what differs is named.
    """
    vae, params = pipeline.vae, pipeline.params["vae"]
    images = jax.ShapeDtypeStruct((1, 2, side, side, 3), jnp.uint8)
    row = jax.eval_shape(functools.partial(_stored, vae, posterior), params, images)
    bound = {
        "preferences": preferences.digest,
        "side": side,
        "autoencoder": dataclasses.asdict(vae.config),
        # The decoder has no say in it: one that was tuned later may use these latents too.
        "autoencoder weights": weights_digest({name: params[name] for name in _ENCODER if name in params}),
        "latents": "means and log variances" if posterior else "means",
    }
    file = ArrayFile(Path(folder) / FILE, (len(preferences), *row.shape[1:]), np.dtype(row.dtype), bound)
    file.rows_done()
    return file


def latent_cache(
    folder: str | os.PathLike,
    preferences: PicturePairs,
    pipeline: Pipeline,
    *,
    side: int,
    posterior: bool = False,
    pairs_per_device: int = 4,
    threads: int = 8,
    workers: int = 0,
) -> LatentCache:
    """The latents of a prepared split; what is not on disk yet is computed on the mesh in context, with progress.

    Of all pairs, whether they take part in training or not: rows are those of the split.

    Args:
      folder: holds this split's latents and nothing else; all processes see it. A picture of SD 1.5 takes 64 KiB in
        float32, one of SDXL 256.
      side: of the pictures, in pixels.
      posterior: keep log variances too, for training that draws latents anew every time.
      pairs_per_device: encoded at a time. threads, workers: see `spo_jax.data.preferences.loading.batches`.

    Raises:
      UserError: as `latent_file`; the folder cannot be written or is too small; a damaged picture.
    """
    file = latent_file(folder, preferences, pipeline, side=side, posterior=posterior)
    vae, params = pipeline.vae, pipeline.params["vae"]
    fill(
        file,
        preferences,
        lambda batch: _stored(vae, posterior, params, join_parts(batch.images)),
        side=side,
        pairs_per_device=pairs_per_device,
        title="latents",
        threads=threads,
        workers=workers,
    )
    return LatentCache(file, posterior)
