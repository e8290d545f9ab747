"""The training of a preference model, bound to its models: what it makes of images, and how it scores that.

Images are encoded and noised, the diffusion model makes guided predictions of them, and these are decoded, resized and
scored.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax.core.rows import joined_rows
from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.methods.common.latents import model_range
from spo_jax.methods.common.pair_inputs import FrozenParams
from spo_jax.methods.common.preference.rows import Rows
from spo_jax.methods.common.preference.training import JudgeTraining
from spo_jax.methods.spm.inputs import Draws, draw, predictions, training_pixels
from spo_jax.methods.spm.loss import PairBatch, pair_scores
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.models.base import Guidance, Pipeline, bind_denoise, repeat_rows
from spo_jax.nn.clip import CLIPModel
from spo_jax.parallel.mesh import spread


@dataclasses.dataclass(frozen=True)
class SPMTraining(JudgeTraining):
    """The method bound to its models.

    Attributes:
      pipeline: the diffusion model.
      clip: the preference model's network.
      settings: settings of the run.
      mesh: mesh on which the weights lie; None if they lie on the first device.

    Raises:
      UserError: the size of the images does not fit the diffusion model.
    """

    CLEAN_AT_ZERO: ClassVar[bool] = True
    DECISIVE: ClassVar[tuple[str, ...]] = ("guidance_scale",)

    pipeline: Pipeline
    clip: CLIPModel
    settings: SPMTrainSettings
    mesh: Mesh | None = None

    def row_shapes(self) -> Rows:
        """See `JudgeTraining.row_shapes`."""
        return Rows(
            self.image_shape(),
            self.prompt_shape(),
            self.row_shape(self.clip.config.text.max_position_embeddings, dtype=jnp.int32),
            self.row_shape(2, dtype=jnp.float32),
            self.row_shape(dtype=jnp.float32),
        )

    def draws(self, key: Key, count: int, flip: bool) -> Draws:
        """See `JudgeTraining.draws`."""
        settings = self.settings
        sample = settings.posterior == "sample"
        return draw(key, count, self.latent_shape, self.timesteps, settings.timestep_power, sample, flip)

    def batch(self, frozen: FrozenParams, rows: Rows, draws: Draws) -> PairBatch:
        """Makes clean predictions of noised images; see `JudgeTraining.batch`."""
        pipeline = self.pipeline
        latents = self.clean_latents(frozen, rows.images, draws)
        condition = spread(pipeline.encode_tokens(frozen.text, rows.prompt_ids, **self.prompt_options))
        guidance = Guidance(repeat_rows(condition, 2), frozen.unconditional, self.settings.guidance_scale)
        denoise = bind_denoise(pipeline, frozen.network, None, guidance)

        def decode(latents: Array) -> Array:
            return pipeline.decode(frozen.vae, latents)

        images = predictions(draws.noise, self.process, denoise, decode, latents, draws.t)
        return self._pair_batch(images, draws.t, rows)

    def pair_scores(self, params: Params, batch: PairBatch) -> Float[Array, "n 2"]:
        """See `JudgeTraining.pair_scores`."""
        return pair_scores(self.clip, params, batch)

    def clean_scores(self, params: Params, rows: Rows) -> Float[Array, "n 2"]:
        """See `JudgeTraining.clean_scores`."""

        def batch(rows: Rows) -> PairBatch:
            t = jnp.zeros(len(rows.labels), jnp.int32)
            return self._pair_batch(model_range(rows.images), t, rows)

        return self.in_chunks(params, batch, rows, len(rows.labels))

    def _pair_batch(self, images: Float[Array, "n 2 H W 3"], t: Int[Array, " n"], rows: Rows) -> PairBatch:
        # [n 2 H W 3] -> [2n side side 3]
        pixels = training_pixels(joined_rows(images), self.clip.config.vision.image_size)
        return PairBatch(pixels.reshape(len(t), 2, *pixels.shape[1:]), t, rows.ids, rows.labels, rows.weights)
