"""Preference pairs as the inputs of programs: images or kept latents, tokens, and the frozen weights that read them."""

import contextlib
import dataclasses
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.typing import Array, Float, Int, Params, PyTree, UInt8
from spo_jax.data.preferences.format import Preferences
from spo_jax.data.preferences.loading import LoadedBatch, batches
from spo_jax.methods.common.latents import encode_pairs, latent_cache, latent_file
from spo_jax.methods.common.settings import PairSettings
from spo_jax.models.base import Pipeline
from spo_jax.parallel.mesh import over_batch, replicated
from spo_jax.parallel.multihost import join_parts, local_positions
from spo_jax.parallel.sharding import place, shapes_of


class FrozenParams(NamedTuple):
    """The weights of the diffusion model; arguments of the programs, not constants.

    Attributes:
      network: base weights of its network.
      vae: weights of its autoencoder.
      text: weights of its text encoders.
      unconditional: encoded unconditional input, one row.
    """

    network: Params
    vae: Params
    text: Params
    unconditional: PyTree


class PairInputs:
    """Base class of what binds a method to its models, if it learns from prepared preference pairs.

    A subclass is a frozen dataclass with these attributes and more.

    Attributes:
      pipeline: the diffusion model.
      settings: settings of the run.
      mesh: mesh on which the weights lie; None if they lie on the first device.

    Raises:
      UserError: the size of the images does not fit the diffusion model.
    """

    pipeline: Pipeline
    settings: PairSettings
    mesh: Mesh | None

    def __post_init__(self) -> None:
        downscale = self.pipeline.downscale
        if self.side % downscale:
            raise UserError(
                f"config field resolution = {self.side}: expected a multiple of the autoencoder's {downscale}"
            )
        height, width = self.pipeline.image_size
        if height != width and not self.settings.resolution:
            raise UserError(
                f"config field resolution = 0: the model's native size {height} x {width} is not square; set a side"
            )

    @property
    def side(self) -> int:
        """The side of the images in pixels."""
        return self.settings.resolution or self.pipeline.image_size[0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (h, w, c) of an image's latents."""
        side = self.side // self.pipeline.downscale
        return side, side, self.pipeline.latent_shape[2]

    # Frozen weights, and the shapes of a batch

    @property
    def prompt_options(self) -> dict[str, Any]:
        """The arguments of `Pipeline.encode_tokens` for images of this size."""
        return self.pipeline.prompt_options(self.latent_shape)

    def frozen(self) -> FrozenParams:
        """Returns the weights that the programs take."""
        row = self.pipeline.encode_unconditional(**self.prompt_options)
        row = place(row, replicated(self.mesh)) if self.mesh else jax.device_put(row)
        params = self.pipeline.params
        return FrozenParams(params[self.pipeline.TRAINED], params["vae"], self.pipeline.text_params, row)

    def frozen_shapes(self) -> FrozenParams:
        """Returns the shapes of `frozen`; the pipeline may be abstract."""
        params = self.pipeline.params
        text = self.pipeline.text_params
        ids = jax.ShapeDtypeStruct((1, *self.pipeline.token_shape), "int32")

        def encode(params: Params, ids: Array) -> PyTree:
            return self.pipeline.encode_tokens(params, ids, **self.prompt_options)

        everywhere = replicated(self.mesh) if self.mesh else None
        row = shapes_of(jax.eval_shape(encode, text, ids), everywhere)
        return FrozenParams(*shapes_of((params[self.pipeline.TRAINED], params["vae"], text)), row)

    def row_shape(self, *axes: int, dtype: Any) -> jax.ShapeDtypeStruct:
        """Returns the shape of an array with a row for each pair of a batch, which lies over the devices."""
        sharding = over_batch(self.mesh) if self.mesh else None
        return jax.ShapeDtypeStruct((self.settings.batch_size, *axes), dtype, sharding=sharding)

    def image_shape(self) -> jax.ShapeDtypeStruct:
        """Returns the shape of a batch's images, or of the latents that are kept for them."""
        if not self.settings.cache_latents:
            return self.row_shape(2, self.side, self.side, 3, dtype=jnp.uint8)
        pixels = jax.ShapeDtypeStruct((1, 2, self.side, self.side, 3), jnp.uint8)
        mean, _ = jax.eval_shape(lambda p, x: encode_pairs(self.pipeline, p, x), self.pipeline.params["vae"], pixels)
        parts = 2 if self.settings.posterior == "sample" else 1
        return self.row_shape(*mean.shape[1:-1], parts * mean.shape[-1], dtype=mean.dtype)

    def prompt_shape(self) -> jax.ShapeDtypeStruct:
        """Returns the shape of the tokens of a batch's prompts for the diffusion model."""
        return self.row_shape(*self.pipeline.token_shape, dtype=jnp.int32)

    def feed(self, rows: PyTree) -> PyTree:
        """Moves this process's part of a batch from the host to its devices."""
        return join_parts(rows) if self.mesh else jax.device_put(rows)

    # Latents

    def latents(
        self,
        vae: Params,
        images: UInt8[Array, "n 2 H W 3"] | Float[Array, "n 2 h w c2"],
        posterior: Float[Array, "n 2 h w c"] | None,
    ) -> Float[Array, "n 2 h w c"]:
        """Makes the latents of pairs, as the diffusion model sees them, inside a program.

        Args:
          vae: weights of the autoencoder.
          images: pixels, or the latents that are kept for them.
          posterior: noise of draws from the autoencoder's posterior; None takes its mean.
        """
        channels = self.latent_shape[2]
        if images.dtype == jnp.uint8:
            mean, logvar = encode_pairs(self.pipeline, vae, images)
        else:
            mean = images[..., :channels]
            logvar = images[..., channels:]
        mean = mean.astype(jnp.float32)
        logvar = logvar.astype(jnp.float32)
        latents = mean if posterior is None else mean + jnp.exp(0.5 * logvar) * posterior
        return self.pipeline.scale_latents(latents)

    # Loading

    def check_cache(self, pairs: Preferences) -> None:
        """Looks at the folder of kept latents before hours of work.

        Raises:
          UserError: it holds latents of something else.
        """
        if self.settings.cache_latents:
            latent_file(**self._cached(pairs))

    def loaded(self, pairs: Preferences, rows: Int[np.ndarray, " m"], start: int) -> Generator[LoadedBatch, None, None]:
        """Loads this process's parts of the batches from number ``start`` on; kept latents are made first.

        Args:
          pairs: the prepared split.
          rows: positions of the pairs to train on.
          start: number of the first batch.

        Raises:
          UserError: an image is damaged, or latents cannot be kept.
        """
        settings = self.settings
        loading = dataclasses.asdict(settings.loading)
        read = latent_cache(**self._cached(pairs), **loading).pair if settings.cache_latents else None
        loaded = batches(
            pairs,
            rows,
            side=self.side,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start=start,
            positions=local_positions(settings.batch_size),
            read=read,
            **loading,
        )
        with contextlib.closing(loaded):
            yield from loaded

    def _cached(self, pairs: Preferences) -> dict[str, Any]:
        """Returns the arguments of `latent_file` and `latent_cache`."""
        settings = self.settings
        return {
            "folder": local_path(settings.cache_latents) / settings.train_split,
            "preferences": pairs,
            "pipeline": self.pipeline,
            "side": self.side,
            "posterior": settings.posterior == "sample",
        }
