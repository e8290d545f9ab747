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
from spo_jax.core.progress import bar
from spo_jax.core.rows import joined_rows
from spo_jax.core.typing import Array, Float, Params, UInt8
from spo_jax.data.array_file import ArrayFile
from spo_jax.data.preferences.loading import ImagePairs
from spo_jax.methods.common.precompute import fill
from spo_jax.models.base import Pipeline
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.compiling import device_jit
from spo_jax.parallel.mesh import devices_in_context, gathered, spread
from spo_jax.parallel.multihost import join_parts

FILE = "latents.npy"


@dataclasses.dataclass(frozen=True)
class LatentCache:
    """Latents on disk, before `Pipeline.scale_latents`. A cache can be pickled.

    Attributes:
      file: the file, with one row per pair.
      posterior: whether the posterior's log variances follow its means along the channels.
    """

    file: ArrayFile
    posterior: bool

    def pair(self, row: int) -> Float[np.ndarray, "2 h w c"]:
        """Reads the latents of one pair.

        `spo_jax.data.preferences.loading.batches` calls this function instead of reading images. With
        ``posterior``, c is twice the number of the latents' channels.
        """
        return np.array(self._array[row])

    @functools.cached_property
    def _array(self) -> np.ndarray:
        return self.file.open()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the file themselves; otherwise its whole content would be sent to them.
        return {name: value for name, value in self.__dict__.items() if name != "_array"}


def model_range(images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Converts pixels to float32 in [-1, 1], in the reference's order of operations."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5


def encode_pairs(
    pipeline: Pipeline, params: Params, images: UInt8[Array, "n 2 H W 3"]
) -> tuple[Float[Array, "n 2 h w c"], Float[Array, "n 2 h w c"]]:
    """Encodes both images of every pair.

    Args:
      pipeline: the model.
      params: the autoencoder's weights.
      images: pixels.

    Returns:
      Mean and log variance of the posterior, before `Pipeline.scale_latents`.
    """
    flat = joined_rows(model_range(images))  # [n 2 H W 3] -> [2n H W 3]
    moments = pipeline.encode(params, flat)
    return tuple(x.reshape(*images.shape[:2], *x.shape[1:]) for x in moments)  # [2n h w c] -> [n 2 h w c]


def encode_images(
    pipeline: Pipeline, read: Callable[[int, int], UInt8[np.ndarray, "side side 3"]], count: int, chunk: int = 8
) -> tuple[Float[np.ndarray, "n h w c"], Float[np.ndarray, "n h w c"]]:
    """Encodes all images of a data set.

    Args:
      pipeline: the model.
      read: function from (row, side in pixels) to a square image.
      count: number of images.
      chunk: number of images that each device encodes at a time.

    Returns:
      Mean and standard deviation of the posterior, before `Pipeline.scale_latents`, in float32 on the host.

    Raises:
      UserError: the model's native size is not square.
    """
    height, width = pipeline.image_size
    if height != width:
        raise UserError(
            f"{pipeline.folder}: its native size {height} x {width} is not square, and images are cut square"
        )

    @device_jit
    def encode(params: Params, images: UInt8[Array, "n H W 3"]) -> tuple[Array, Array]:
        mean, logvar = pipeline.encode(params, model_range(spread(images)))
        return gathered((mean.astype(jnp.float32), jnp.exp(0.5 * logvar.astype(jnp.float32))))

    def encode_rows(rows: np.ndarray) -> tuple[Array, Array]:
        moments = encode(pipeline.params["vae"], np.stack([read(int(row), height) for row in rows]))
        shown.update(min(size, count - shown.n))
        return moments

    size = chunk * devices_in_context()
    # Rows from the start fill the last chunk, several times over if there are fewer images than devices.
    rows = np.arange(-(-count // size) * size) % count
    with bar("latents", count, "image") as shown:
        mean, std = in_chunks(encode_rows, rows, size)
    return mean[:count], std[:count]


def _stored(pipeline: Pipeline, posterior: bool) -> Callable[[Params, Array], Array]:
    """Returns the function from (the autoencoder's weights, images [n 2 H W 3]) to the rows of the file."""

    def encode(params: Params, images: UInt8[Array, "n 2 H W 3"]) -> Array:
        mean, logvar = encode_pairs(pipeline, params, spread(images))
        return gathered(jnp.concatenate([mean, logvar], axis=-1) if posterior else mean)

    return encode


def latent_file(
    folder: str | os.PathLike, preferences: ImagePairs, pipeline: Pipeline, *, side: int, posterior: bool = False
) -> ArrayFile:
    """Returns the file in which `latent_cache` keeps latents; it may be incomplete or not exist yet.

    Args:
      folder: see `latent_cache`.
      preferences: see `latent_cache`.
      pipeline: see `latent_cache`.
      side: see `latent_cache`.
      posterior: see `latent_cache`.

    Raises:
      UserError: the folder holds latents of other data, another autoencoder, size or type; the message says what
        differs.
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
    """Opens the latents of a prepared split, and first computes the missing rows on the mesh in context.

    The file has a row for every pair of the split, whether the pair takes part in training or not.

    Args:
      folder: folder for this split's latents and nothing else, visible to all processes. The latents of an image take
        64 KiB in float32 for SD 1.5, and 256 KiB for SDXL.
      preferences: the prepared split.
      pipeline: the model whose autoencoder encodes the images.
      side: side of the images in pixels.
      posterior: whether to keep log variances too, for training that draws new latents every time.
      pairs_per_device: number of pairs that each device encodes at a time.
      threads: see `spo_jax.data.preferences.loading.batches`.
      workers: see `spo_jax.data.preferences.loading.batches`.

    Raises:
      UserError: as in `latent_file`; or the folder cannot be written or is full; or an image is damaged.
    """
    file = latent_file(folder, preferences, pipeline, side=side, posterior=posterior)
    encode = device_jit(_stored(pipeline, posterior))
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
