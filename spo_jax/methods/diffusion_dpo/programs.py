"""Diffusion-DPO bound to its models: the one program of a training step, and its inputs.

The program encodes images (unless latents are kept) and captions, noises or inverts the latents, asks the reference,
and computes loss, gradients and the update. Only the policy's own prediction is differentiated.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from spo_jax.core.typing import Array, Bool, Float, Int, Key, Params, PyTree, UInt8
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.gradients import chunked_gradients
from spo_jax.methods.common.optimizer import learning_rate_at, make_optimizer
from spo_jax.methods.common.pair_inputs import FrozenParams, PairInputs
from spo_jax.methods.common.policy import equal_rounding
from spo_jax.methods.common.state import TrainState, apply_gradients
from spo_jax.methods.diffusion_dpo.inputs import Draws, Inputs, draw, inverted, noised
from spo_jax.methods.diffusion_dpo.settings import DPOTrainSettings
from spo_jax.methods.diffusion_dpo.update import chunk_loss, errors, metric_names
from spo_jax.models.base import Pipeline, repeat_rows
from spo_jax.parallel.chunks import cut
from spo_jax.parallel.mesh import replicated, spread
from spo_jax.parallel.sharding import shapes_of
from spo_jax.parallel.sizes import even_chunk


class Batch(NamedTuple):
    """A batch of preference pairs, as the program takes it.

    Attributes:
      images: pixels, or the latents that `spo_jax.methods.common.latents.LatentCache` holds for them.
      prompt_ids: tokens of the captions for the e text encoders.
      second_wins: whether the second image is the winner.
      weight: smoothed labels.
    """

    images: UInt8[Array | np.ndarray, "n 2 s s 3"] | Float[Array | np.ndarray, "n 2 h w c"]
    prompt_ids: Int[Array | np.ndarray, "n e l"]
    second_wins: Bool[Array | np.ndarray, " n"]
    weight: Float[Array | np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class DPO(PairInputs):
    """The method bound to its models.

    Attributes:
      pipeline: the diffusion model.
      settings: settings of the run.
      mesh: mesh on which the weights lie.

    Raises:
      UserError: the size of the images does not fit the diffusion model.
    """

    pipeline: Pipeline
    settings: DPOTrainSettings
    mesh: Mesh

    @property
    def process(self) -> Process:
        """The diffusion process, divided into the steps of an inversion."""
        return self.pipeline.process(self.settings.dpo.inversion_steps)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the run."""
        return make_optimizer(self.settings.optimizer, self.settings.train_steps)

    def batch_shapes(self) -> Batch:
        """Returns the shapes of one batch, with the shardings that `feed` gives it."""
        labels = self.row_shape(dtype=jnp.bool), self.row_shape(dtype=jnp.float32)
        return Batch(self.image_shape(), self.prompt_shape(), *labels)

    def update(
        self, state: TrainState, frozen: FrozenParams, batch: Batch, key: Key
    ) -> tuple[TrainState, dict[str, Array]]:
        """Trains on one batch; everything random follows from the run's ``key`` and the step's number alone.

        Args:
          state: the current state.
          frozen: weights that training does not change.
          batch: the pairs.
          key: the run's key.

        Returns:
          The next state, and the metrics, with the gradients' global norm before clipping.
        """
        settings = self.settings
        process = self.process
        count = len(batch.weight)
        timesteps = process.num_train_timesteps
        sample = settings.posterior == "sample"
        step_key = jax.random.fold_in(key, state.step)
        draws = spread(
            draw(step_key, count, self.latent_shape, timesteps, settings.caption_dropout, sample, settings.dpo)
        )
        chunk = even_chunk(count, settings.chunk, self.mesh.size)
        chunks = cut((batch, draws), chunk)

        def predict(lora: Params | None, x: Array, t: Array, condition: PyTree) -> Array:
            return self.pipeline.predict(frozen.network, lora, x, t, condition, settings.lora.scale)

        def chunk_at(index: Array) -> Inputs:
            one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), chunks)
            return jax.lax.stop_gradient(self.inputs(state.params, predict, process, frozen, *one))

        def loss(lora: Params, inputs: Inputs) -> tuple[Array, dict[str, Array]]:
            return chunk_loss(lora, predict, settings.dpo, timesteps, inputs, count)

        zeros = dict.fromkeys(metric_names(settings.dpo), jnp.zeros(()))
        metrics, gradients = chunked_gradients(loss, state.params, chunk_at, count // chunk, zeros)
        metrics["grad_norm"] = optax.global_norm(gradients)
        rate = learning_rate_at(settings.optimizer, settings.train_steps, state.step)
        metrics["learning_rate"] = jnp.asarray(rate, jnp.float32)
        return apply_gradients(state, gradients, self.optimizer), metrics

    def inputs(
        self, lora: Params, predict: Any, process: Process, frozen: FrozenParams, batch: Batch, draws: Draws
    ) -> Inputs:
        """Makes what the loss of a chunk is computed from.

        Args:
          lora: the adapter, which an inversion follows.
          predict: the network.
          process: the diffusion process.
          frozen: weights that training does not change.
          batch: the pairs of the chunk.
          draws: everything random about them.
        """
        latents = self.latents(frozen.vae, batch.images, draws.posterior)
        swap = batch.second_wins.reshape(-1, 1, 1, 1, 1)
        latents = jnp.where(swap, latents[:, ::-1], latents)  # the winner comes first
        condition = spread(self.pipeline.encode_tokens(frozen.text, batch.prompt_ids, **self.prompt_options))
        condition = jax.tree.map(
            lambda own, none: jnp.where(draws.dropped.reshape(-1, *[1] * (own.ndim - 1)), none, own),
            condition,
            repeat_rows(frozen.unconditional, len(draws.t)),
        )
        if draws.noise is not None:
            x, target = noised(process, latents, draws.t, draws.noise)
        else:
            twice = repeat_rows(condition, 2)
            x, target = inverted(lambda x, t: predict(lora, x, t, twice), process, self.settings.dpo, latents, draws)
        inputs = Inputs(x, target, draws.t, condition, batch.weight)
        if self.settings.dpo.has_reference:
            inputs = inputs._replace(reference=errors(predict, None, inputs))
        return inputs

    def trace(self, state: TrainState, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces the program ``update``, which donates the state, and rounds policy and reference alike.

        Args:
          state: arrays or shapes.
          keep_unused: whether the program keeps arguments that it does not read.
        """
        whole = replicated(self.mesh)
        key = shapes_of(jax.eval_shape(lambda: jax.random.key(0)), whole)
        options = {"compiler_options": equal_rounding(self.pipeline.dtype), "keep_unused": keep_unused}
        program = jax.jit(self.update, donate_argnums=0, out_shardings=whole, **options)
        return {"update": program.trace(shapes_of(state), self.frozen_shapes(), self.batch_shapes(), key)}
