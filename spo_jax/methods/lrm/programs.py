"""The training of a latent reward model, bound to its models."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.methods.common.pair_inputs import FrozenParams
from spo_jax.methods.common.preference.rows import Rows
from spo_jax.methods.common.preference.training import JudgeTraining
from spo_jax.methods.lrm.inputs import Draws, LatentPairs, draw, pair_scores
from spo_jax.methods.lrm.settings import LRMTrainSettings
from spo_jax.models.base import Pipeline
from spo_jax.rewards.common.latent_model import LatentModel


@dataclasses.dataclass(frozen=True)
class LRMTraining(JudgeTraining):
    """The method bound to its models. Of the diffusion model, a program takes the autoencoder alone.

    Attributes:
      pipeline: the diffusion model whose latents are judged.
      model: the networks of the latent reward model.
      settings: settings of the run.
      mesh: mesh on which the weights lie; None if they lie on the first device.
      empty: tokens of the empty prompt for every text encoder; None in an abstract run.

    Raises:
      UserError: the size of the images does not fit the diffusion model.
    """

    DECISIVE: ClassVar[tuple[str, ...]] = ("guidance_scale",)

    pipeline: Pipeline
    model: LatentModel
    settings: LRMTrainSettings
    mesh: Mesh | None = None
    empty: Int[np.ndarray, "1 e l"] | None = None

    def frozen(self) -> FrozenParams:
        """Returns the weights that the programs take: those of the autoencoder."""
        return FrozenParams({}, self.pipeline.params["vae"], {}, None)

    def frozen_shapes(self) -> FrozenParams:
        """Returns the shapes of `frozen`; the pipeline may be abstract."""
        return super().frozen_shapes()._replace(network={}, text={}, unconditional=None)

    def row_shapes(self) -> Rows:
        """See `JudgeTraining.row_shapes`."""
        return Rows(
            self.image_shape(),
            None,
            self.row_shape(*self.pipeline.token_shape, dtype=jnp.int32),
            self.row_shape(2, dtype=jnp.float32),
            self.row_shape(dtype=jnp.float32),
        )

    def draws(self, key: Key, count: int, flip: bool) -> Draws:
        """See `JudgeTraining.draws`."""
        settings = self.settings
        sample = settings.posterior == "sample"
        return draw(key, count, self.latent_shape, settings.trained_timesteps, sample, flip)

    def batch(self, frozen: FrozenParams, rows: Rows, draws: Draws) -> LatentPairs:
        """Noises latents; see `JudgeTraining.batch`."""
        latents = self.clean_latents(frozen, rows.images, draws)
        n = len(latents)
        flat, noise = (x.reshape(2 * n, *x.shape[2:]) for x in (latents, draws.noise))  # [n 2 h w c] -> [2n h w c]
        x = self.process.add_noise(flat, noise, jnp.repeat(draws.t, 2)).reshape(latents.shape)
        return LatentPairs(x, draws.t, rows.ids, rows.labels, rows.weights)

    def pair_scores(self, params: Params, batch: LatentPairs) -> Float[Array, "n 2"]:
        """See `JudgeTraining.pair_scores`."""
        length = self.pipeline.token_shape
        empty = jnp.zeros((1, *length), jnp.int32) if self.empty is None else jnp.asarray(self.empty)
        return pair_scores(self.model, params, batch, empty)
