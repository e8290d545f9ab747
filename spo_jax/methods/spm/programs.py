"""The training of a preference model, bound to its models: the programs of its step and its scores, and their inputs.

A training step is a single program: it encodes images, adds noise, makes guided predictions, decodes and resizes them,
scores them, and computes loss, gradients and the update. The frozen models are outside of what is differentiated.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Float, Int, Key, Params, UInt8
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.latents import model_range
from spo_jax.methods.common.pair_inputs import FrozenParams, PairInputs
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.spm.inputs import Draws, draw, predictions, training_pixels
from spo_jax.methods.spm.loss import PairBatch, pair_scores
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.update import apply_step, gradients, state_shardings
from spo_jax.models.base import Guidance, Pipeline, bind_denoise, repeat_rows
from spo_jax.nn.clip import CLIPModel
from spo_jax.parallel.chunks import cut, joined
from spo_jax.parallel.mesh import gathered, replicated, spread
from spo_jax.parallel.sharding import shapes_of
from spo_jax.parallel.sizes import even_chunk


class Rows(NamedTuple):
    """A batch of preference pairs, as the programs take it.

    Attributes:
      images: pixels, or the latents that `spo_jax.methods.common.latents.LatentCache` holds for them.
      prompt_ids: tokens of the prompts for the diffusion model's e text encoders.
      ids: tokens of the prompts for the preference model.
      labels: (1, 0), (0, 1), or (½, ½) for a tie.
      weights: weights in proportion to 1 / (number of pairs with the same prompt); their sum does not matter.
    """

    images: UInt8[Array | np.ndarray, "n 2 s s 3"] | Float[Array | np.ndarray, "n 2 h w c"]
    prompt_ids: Int[Array | np.ndarray, "n e l"]
    ids: Int[Array | np.ndarray, "n l2"]
    labels: Float[Array | np.ndarray, "n 2"]
    weights: Float[Array | np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class SPMTraining(PairInputs):
    """The method bound to its models.

    Attributes:
      pipeline: the diffusion model.
      clip: the preference model's network.
      settings: settings of the run.
      mesh: mesh on which the weights lie; None if they lie on the first device.

    Raises:
      UserError: the size of the images does not fit the diffusion model.
    """

    pipeline: Pipeline
    clip: CLIPModel
    settings: SPMTrainSettings
    mesh: Mesh | None = None

    @property
    def process(self) -> Process:
        """The diffusion process; its number of sampling steps has no effect here."""
        return self.pipeline.process(20)

    @property
    def timesteps(self) -> int:
        """The number of training timesteps."""
        return self.process.num_train_timesteps

    def check_timesteps(self, timesteps: Sequence[int]) -> None:
        """Raises a `UserError` if the diffusion model does not have one of the timesteps."""
        for t in timesteps:
            if t >= self.timesteps:
                raise UserError(f"config field eval.timesteps: {t} is not below the model's {self.timesteps}")

    # Inputs of the programs

    def row_shapes(self) -> Rows:
        """Returns the shapes of one batch, with the shardings that `feed` gives it."""
        return Rows(
            self.image_shape(),
            self.prompt_shape(),
            self.row_shape(self.clip.config.text.max_position_embeddings, dtype=jnp.int32),
            self.row_shape(2, dtype=jnp.float32),
            self.row_shape(dtype=jnp.float32),
        )

    # The programs

    def step(
        self, state: TrainState, frozen: FrozenParams, rows: Rows, key: Key
    ) -> tuple[TrainState, dict[str, Array]]:
        """Trains on one batch; everything random follows from the run's ``key`` and the step's number alone."""
        settings = self.settings
        count = len(rows.labels)
        draws = spread(self._draw(jax.random.fold_in(key, state.step), count, settings.timestep_power, settings.flip))
        rows = rows._replace(weights=rows.weights / rows.weights.sum())
        gradient, metrics = gradients(
            self.clip,
            state.params,
            lambda chunk: self.batch(frozen, *chunk),
            cut((rows, draws), self._chunk(count)),
            self.timesteps,
            self._beside_weights,
        )
        state, more = apply_step(state, gradient, settings)
        return state, {**metrics, **more}

    def scores(
        self, params: Params, frozen: FrozenParams, rows: Rows, t: Int[Array, ""], number: Int[Array, ""], key: Key
    ) -> Float[Array, "n 2"]:
        """Scores pairs that are noised to one timestep, otherwise as in training.

        Everything random follows from ``key``, ``number`` and ``t``.

        Args:
          params: weights of the preference model.
          frozen: weights of the diffusion model.
          rows: the pairs.
          t: the timestep.
          number: number of the batch.
          key: key of the measurement.
        """
        count = len(rows.labels)
        draws = self._draw(jax.random.fold_in(jax.random.fold_in(key, number), t), count, power=1.0, flip=False)
        draws = spread(draws._replace(t=jnp.full(count, t, jnp.int32)))
        return self._in_chunks(params, lambda chunk: self.batch(frozen, *chunk), (rows, draws), count)

    def clean_scores(self, params: Params, rows: Rows) -> Float[Array, "n 2"]:
        """Scores the images themselves at t = 0, without autoencoder and noise."""

        def batch(rows: Rows) -> PairBatch:
            t = jnp.zeros(len(rows.labels), jnp.int32)
            return self._pair_batch(model_range(rows.images), t, rows)

        return self._in_chunks(params, batch, rows, len(rows.labels))

    def batch(self, frozen: FrozenParams, rows: Rows, draws: Draws) -> PairBatch:
        """Makes the preference model's input: clean predictions of noised images.

        Args:
          frozen: weights of the diffusion model.
          rows: the pairs of a chunk.
          draws: everything random about them.
        """
        pipeline = self.pipeline
        latents = self._latents(frozen, rows.images, draws)
        condition = spread(pipeline.encode_tokens(frozen.text, rows.prompt_ids, **self.prompt_options))
        guidance = Guidance(repeat_rows(condition, 2), frozen.unconditional, self.settings.guidance_scale)
        denoise = bind_denoise(pipeline, frozen.network, None, guidance)

        def decode(latents: Array) -> Array:
            return pipeline.decode(frozen.vae, latents)

        images = predictions(draws.noise, self.process, denoise, decode, latents, draws.t)
        return self._pair_batch(images, draws.t, rows)

    def _latents(self, frozen: FrozenParams, images: Array, draws: Draws) -> Float[Array, "n 2 h w c"]:
        if draws.flip is not None:
            images = jnp.where(draws.flip[:, None, None, None, None], images[:, :, :, ::-1], images)
        return self.latents(frozen.vae, images, draws.posterior)

    def _pair_batch(self, images: Float[Array, "n 2 H W 3"], t: Int[Array, " n"], rows: Rows) -> PairBatch:
        # [n 2 H W 3] -> [2n side side 3]
        pixels = training_pixels(images.reshape(-1, *images.shape[2:]), self.clip.config.vision.image_size)
        return PairBatch(pixels.reshape(len(t), 2, *pixels.shape[1:]), t, rows.ids, rows.labels, rows.weights)

    def _in_chunks(
        self, params: Params, batch: Callable[[Any], PairBatch], inputs: Any, count: int
    ) -> Float[Array, "n 2"]:
        def score(chunk: Any) -> Array:
            return pair_scores(self.clip, params, batch(chunk))

        # A measurement in float32 is in float32 on every device: see `docs/parity.md`.
        with jax.default_matmul_precision("highest"):
            return gathered(joined(jax.lax.map(score, cut(inputs, self._chunk(count)))))

    def _draw(self, key: Key, count: int, power: float, flip: bool) -> Draws:
        sample = self.settings.posterior == "sample"
        return draw(key, count, self.latent_shape, self.timesteps, power, sample, flip)

    def _chunk(self, count: int) -> int:
        return even_chunk(count, self.settings.chunk, self.mesh.size if self.mesh else 1)

    def _beside_weights(self, gradient: Params) -> Params:
        if self.mesh is None:
            return gradient
        return jax.lax.with_sharding_constraint(gradient, state_shardings(gradient, self.mesh))

    def trace(self, state: TrainState, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces the training step, which donates the state and returns the next one with the same shardings.

        Args:
          state: arrays or shapes.
          keep_unused: whether the program keeps arguments that it does not read.
        """
        out = None
        key = jax.eval_shape(lambda: jax.random.key(0))
        if self.mesh:
            out = (state_shardings(state, self.mesh), replicated(self.mesh))
            key = shapes_of(key, replicated(self.mesh))
        step = jax.jit(self.step, donate_argnums=0, out_shardings=out, keep_unused=keep_unused)
        return {"step": step.trace(shapes_of(state), self.frozen_shapes(), self.row_shapes(), key)}
