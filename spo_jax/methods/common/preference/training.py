"""The training of a judge on labelled pairs, bound to its models: the programs of its step and of its scores.

A training step is a single program, from images to the update. What makes the judge's input of images is outside of
what is differentiated.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.pair_inputs import FrozenParams, PairInputs
from spo_jax.methods.common.preference.rows import Rows
from spo_jax.methods.common.preference.settings import JudgeTrainSettings
from spo_jax.methods.common.preference.update import ScoredBatch, apply_step, gradients, state_shardings
from spo_jax.methods.common.state import TrainState
from spo_jax.models.base import Pipeline
from spo_jax.parallel.chunks import cut, joined
from spo_jax.parallel.mesh import gathered, replicated, spread
from spo_jax.parallel.sharding import shapes_of
from spo_jax.parallel.sizes import even_chunk


class JudgeTraining(PairInputs):
    """Base class of what binds the training of a judge to its models.

    A subclass is a frozen dataclass with these attributes and more. It defines `row_shapes`, `draws`, `batch` and
    `pair_scores`, and `clean_scores` if its judge reads images.

    Attributes:
      CLEAN_AT_ZERO: whether images themselves are scored at timestep 0, by `clean_scores`.
      DECISIVE: names of settings besides those of every judge that determine what is judged.
      pipeline: the diffusion model.
      settings: settings of the run.
      mesh: mesh on which the weights lie; None if they lie on the first device.

    Raises:
      UserError: the size of the images does not fit the diffusion model.
    """

    CLEAN_AT_ZERO: ClassVar[bool] = False
    DECISIVE: ClassVar[tuple[str, ...]] = ()

    pipeline: Pipeline
    settings: JudgeTrainSettings
    mesh: Mesh | None

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

    # What a judge defines

    def row_shapes(self) -> Rows:
        """Returns the shapes of one batch, with the shardings that `feed` gives it."""
        raise NotImplementedError

    def draws(self, key: Key, count: int, flip: bool) -> Any:
        """Draws everything random about a batch of pairs, a tuple with a field ``t`` for the timesteps.

        Args:
          key: key of the batch.
          count: number of pairs.
          flip: whether to mirror half of the pairs.
        """
        raise NotImplementedError

    def batch(self, frozen: FrozenParams, rows: Rows, draws: Any) -> ScoredBatch:
        """Makes the judge's input of a chunk of pairs.

        Args:
          frozen: weights of the diffusion model.
          rows: the pairs of the chunk.
          draws: everything random about them.
        """
        raise NotImplementedError

    def pair_scores(self, params: Params, batch: ScoredBatch) -> Float[Array, "n 2"]:
        """Scores both images of every pair of a batch that `batch` made."""
        raise NotImplementedError

    def clean_scores(self, params: Params, rows: Rows) -> Float[Array, "n 2"]:
        """Scores the images themselves at t = 0, without autoencoder and noise."""
        raise NotImplementedError

    # What judges share

    def clean_latents(self, frozen: FrozenParams, images: Array, draws: Any) -> Float[Array, "n 2 h w c"]:
        """Makes the latents of a chunk's images, as the diffusion model sees them, before noise.

        Args:
          frozen: weights of the diffusion model.
          images: pixels, or kept latents.
          draws: what `draws` gave; its field ``flip`` says which pairs to mirror, and ``posterior`` is noise of draws
            from the autoencoder's posterior. Either may be None.
        """
        if draws.flip is not None:
            images = jnp.where(draws.flip[:, None, None, None, None], images[:, :, :, ::-1], images)
        return self.latents(frozen.vae, images, draws.posterior)

    def step(
        self, state: TrainState, frozen: FrozenParams, rows: Rows, key: Key
    ) -> tuple[TrainState, dict[str, Array]]:
        """Trains on one batch; everything random follows from the run's ``key`` and the step's number alone."""
        count = len(rows.labels)
        draws = spread(self.draws(jax.random.fold_in(key, state.step), count, self.settings.flip))
        rows = rows._replace(weights=rows.weights / rows.weights.sum())
        gradient, metrics = gradients(
            self.pair_scores,
            state.params,
            lambda chunk: self.batch(frozen, *chunk),
            cut((rows, draws), self._chunk(count)),
            self.timesteps,
            self._beside_weights,
        )
        state, more = apply_step(state, gradient, self.settings)
        return state, {**metrics, **more}

    def scores(
        self, params: Params, frozen: FrozenParams, rows: Rows, t: Int[Array, ""], number: Int[Array, ""], key: Key
    ) -> Float[Array, "n 2"]:
        """Scores pairs that are noised to one timestep, otherwise as in training.

        Everything random follows from ``key``, ``number`` and ``t``.

        Args:
          params: weights of the judge.
          frozen: weights of the diffusion model.
          rows: the pairs.
          t: the timestep.
          number: number of the batch.
          key: key of the measurement.
        """
        count = len(rows.labels)
        draws = self.draws(jax.random.fold_in(jax.random.fold_in(key, number), t), count, flip=False)
        draws = spread(draws._replace(t=jnp.full(count, t, jnp.int32)))
        return self.in_chunks(params, lambda chunk: self.batch(frozen, *chunk), (rows, draws), count)

    def in_chunks(
        self, params: Params, batch: Callable[[Any], ScoredBatch], inputs: Any, count: int
    ) -> Float[Array, "n 2"]:
        """Scores pairs chunk by chunk.

        Args:
          params: weights of the judge.
          batch: function from a chunk of ``inputs`` to the judge's input.
          inputs: tree of arrays with a row for each pair.
          count: number of pairs.
        """

        def score(chunk: Any) -> Array:
            return self.pair_scores(params, batch(chunk))

        # A measurement in float32 is in float32 on every device: see `docs/parity.md`.
        with jax.default_matmul_precision("highest"):
            return gathered(joined(jax.lax.map(score, cut(inputs, self._chunk(count)))))

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
