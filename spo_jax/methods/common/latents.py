"""Latents of a prepared split, computed once and kept on disk, so that training skips the autoencoder's encoder."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Float, Params, UInt8
from spo_jax.data.array_file import ArrayFile
from spo_jax.data.preferences.loading import ImagePairs
from spo_jax.methods.common.precompute import fill
from spo_jax.models.base import Pipeline
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import devices_in_context, gathered, spread
from spo_jax.parallel.multihost import join_parts

FILE = "latents.npy"


@dataclasses.dataclass(frozen=True)
class LatentCache:
    """Latents on disk, not scaled; picklable.

    Attributes:
      file: a row per pair.
      posterior: whether log variances stand behind the posterior's means.
    """

    file: ArrayFile
    posterior: bool

    def pair(self, row: int) -> Float[np.ndarray, "2 h w c"]:
        """The latents of one pair; what `spo_jax.data.preferences.loading.batches` reads instead of images.

        With ``posterior``, c is twice the latents' channels.
        """
        return np.array(self._array[row])

    @functools.cached_property
    def _array(self) -> np.ndarray:
        return self.file.open()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the file themselves; otherwise all of it would travel to them.
        return {name: value for name, value in self.__dict__.items() if name != "_array"}


def model_range(images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Pixels to [-1, 1], float32, in the reference's order of operations."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5


def encode_pairs(
    pipeline: Pipeline, params: Params, images: UInt8[Array, "n 2 H W 3"]
) -> tuple[Float[Array, "n 2 h w c"], Float[Array, "n 2 h w c"]]:
    """Mean and log variance of the posterior of both images of every pair, not scaled.

    Args:
      params: the autoencoder's weights.
    """
    flat = model_range(images).reshape(-1, *images.shape[2:])  # [n 2 H W 3] -> [2n H W 3]
    moments = pipeline.encode(params, flat)
    return tuple(x.reshape(*images.shape[:2], *x.shape[1:]) for x in moments)


def encode_images(
    pipeline: Pipeline, read: Callable[[int, int], UInt8[np.ndarray, "side side 3"]], count: int, chunk: int = 8
) -> tuple[Float[np.ndarray, "n h w c"], Float[np.ndarray, "n h w c"]]:
    """Mean and standard deviation of the latents of many images, not scaled, float32 on the host.

    Args:
      read: (row, side in pixels) to an image.
      count: number of images.
      chunk: images encoded at a time on each device.

    Raises:
      UserError: the model's native size is not square.
    """
    height, width = pipeline.image_size
    if height != width:
        raise UserError(
            f"{pipeline.folder}: its native size {height} x {width} is not square, and images are cut square"
        )

    @jax.jit
    def encode(params: Params, images: UInt8[Array, "n H W 3"]) -> tuple[Array, Array]:
        mean, logvar = pipeline.encode(params, model_range(spread(images)))
        return gathered((mean.astype(jnp.float32), jnp.exp(0.5 * logvar.astype(jnp.float32))))

    def encode_rows(rows: np.ndarray) -> tuple[Array, Array]:
        return encode(pipeline.params["vae"], np.stack([read(int(row), height) for row in rows]))

    size = chunk * devices_in_context()
    rows = np.arange(-(-count // size) * size) % count  # whole chunks, also of fewer images than devices
    mean, std = in_chunks(encode_rows, rows, size)
    return mean[:count], std[:count]


def _stored(pipeline: Pipeline, posterior: bool) -> Callable[[Params, Array], Array]:
    """(autoencoder's weights, images [n 2 H W 3]) to the rows that are kept."""

    def encode(params: Params, images: UInt8[Array, "n 2 H W 3"]) -> Array:
        mean, logvar = encode_pairs(pipeline, params, spread(images))
        return gathered(jnp.concatenate([mean, logvar], axis=-1) if posterior else mean)

    return encode


def latent_file(
    folder: str | os.PathLike, preferences: ImagePairs, pipeline: Pipeline, *, side: int, posterior: bool = False
) -> ArrayFile:
    """The file in which `latent_cache` keeps latents; arguments as there.

    Raises:
      UserError: the folder holds latents of other data, another autoencoder, size or type; what differs is named.
    """
    images = jax.ShapeDtypeStruct((1, 2, side, side, 3), jnp.uint8)
    row = jax.eval_shape(_stored(pipeline, posterior), pipeline.params["vae"], images)
    bound = {
        "preferences": preferences.digest,
        "side": side,
        **pipeline.encoder_fingerprint(),
        "latents": "means and log variances" if posterior else "means",
    }
    file = ArrayFile(Path(folder) / FILE, (len(preferences), *row.shape[1:]), np.dtype(row.dtype), bound)
    file.rows_done()
    return file


def latent_cache(
    folder: str | os.PathLike,
    preferences: ImagePairs,
    pipeline: Pipeline,
    *,
    side: int,
    posterior: bool = False,
    pairs_per_device: int = 4,
    threads: int = 8,
    workers: int = 0,
) -> LatentCache:
    """The latents of a prepared split; rows that are not on disk yet are computed on the mesh in context.

    All pairs have a row, whether they take part in training or not: rows are those of the split.

    Args:
      folder: holds this split's latents and nothing else; all processes see it. An image of SD 1.5 takes 64 KiB in
        float32, one of SDXL 256.
      side: side of the images in pixels.
      posterior: keep log variances too, for training that draws latents anew every time.
      pairs_per_device: pairs encoded at a time.
      threads: see `spo_jax.data.preferences.loading.batches`.
      workers: likewise.

    Raises:
      UserError: as `latent_file`; the folder cannot be written or is too small; a damaged image.
    """
    file = latent_file(folder, preferences, pipeline, side=side, posterior=posterior)
    encode = jax.jit(_stored(pipeline, posterior))
    fill(
        file,
        preferences,
        lambda batch: encode(pipeline.params["vae"], join_parts(batch.images)),
        side=side,
        pairs_per_device=pairs_per_device,
        title="latents",
        threads=threads,
        workers=workers,
    )
    return LatentCache(file, posterior)
