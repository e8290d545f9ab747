"""SPO bound to its models: the two programs and their inputs."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Int, Key, Params, PyTree
from spo_jax.core.words import counted
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.judge import Judge
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Pairs, Policy
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.spo.resampler import Denoise, Draws, Score, draw
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.methods.spo.update import JudgedRollout, collect, judged_rollout, update
from spo_jax.models.base import Pipeline, count_rows
from spo_jax.parallel.mesh import gathered, over_batch, replicated
from spo_jax.parallel.sharding import place, shapes_of

# XLA may leave out the rounding to 16 bits between operations that it fuses, and it does not fuse the policy's pass,
# which keeps activations for the gradient, as it fuses the reference's. Then likelihood ratios are not 1 where the two
# agree: by 8 % at t = 51 (`docs/parity.md`). With this, both passes round where the code says, at no measurable cost.
_EQUAL_ROUNDING = {"xla_allow_excess_precision": False}


class FrozenParams(NamedTuple):
    """Everything that the programs read and training does not change; arguments of the programs, not constants.

    Attributes:
      network: base weights of the trained network.
      judge: weights of the judge, `Judge.params`.
      unconditional: encoded unconditional input of guidance, one row.
    """

    network: Params
    judge: Params
    unconditional: PyTree


class PromptFeatures(NamedTuple):
    """Features of prompts, computed once for all prompts and kept on the host; a batch takes some of their rows.

    Attributes:
      condition: encoded prompts, on which the model is conditioned.
      judge: the judge's features of prompts.
    """

    condition: PyTree
    judge: PyTree


@dataclasses.dataclass(frozen=True)
class SPO:
    """The method bound to its models.

    Attributes:
      settings: settings of the run.
      pipeline: the model to train.
      judge: scores the candidates of a rollout.
      mesh: mesh on which the weights lie; None if they lie on the first device.

    Raises:
      UserError: the model's last sampling step is at t = 0.
    """

    settings: SPOTrainSettings
    pipeline: Pipeline
    judge: Judge
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if self.process.timesteps[-1] <= 0:  # a step from t = 0 to t = 0 has a standard deviation of 0 and makes NaNs
            raise UserError(
                f"{self.pipeline.folder}: the last sampling step of its scheduler is at t = 0 and has no likelihood; "
                "expected 'leading' spacing with steps_offset 1, or 'trailing'"
            )

    @property
    def process(self) -> Process:
        """The diffusion process, divided into the rollout's steps."""
        return self.pipeline.process(self.settings.spo.num_steps)

    @property
    def policy(self) -> Policy:
        """The model as a policy with an adapter."""
        return Policy(self.pipeline, self.settings.spo.guidance_scale, self.settings.lora.scale)

    # Inputs of the programs

    def frozen(self) -> FrozenParams:
        """Returns the weights that the programs take."""
        row = self.pipeline.encode_unconditional()
        unconditional = place(row, replicated(self.mesh)) if self.mesh else jax.device_put(row)
        return FrozenParams(self.pipeline.params[self.pipeline.TRAINED], self.judge.params, unconditional)

    def features(self, prompts: Sequence[str]) -> PromptFeatures:
        """Encodes prompts for the model and for the judge."""
        with stage(f"encoding {counted(len(prompts), 'training prompt')}"):
            return PromptFeatures(self.pipeline.encode_prompts(prompts), self.judge.features(prompts))

    def feed(self, rows: PromptFeatures) -> PromptFeatures:
        """Moves a batch's rows from the host to the devices, each prompt to the device that works on it."""
        return place(rows, over_batch(self.mesh)) if self.mesh else jax.device_put(rows)

    def frozen_shapes(self) -> FrozenParams:
        """Returns the shapes of `frozen`; the pipeline may be abstract."""
        unconditional = _rows(1, self._condition_shapes(), replicated(self.mesh) if self.mesh else None)
        network = shapes_of(self.pipeline.params[self.pipeline.TRAINED])
        return FrozenParams(network, shapes_of(self.judge.params), unconditional)

    def feature_shapes(self) -> PromptFeatures:
        """Returns the shapes of one batch, with the shardings that `feed` gives it."""
        one = PromptFeatures(self._condition_shapes(), self.judge.reward.feature_shapes())
        return _rows(self.settings.prompts_per_batch, one, over_batch(self.mesh) if self.mesh else None)

    def _condition_shapes(self) -> PyTree:
        ids = jax.ShapeDtypeStruct((1, *self.pipeline.token_shape), "int32")
        return jax.eval_shape(self.pipeline.encode_tokens, self.pipeline.text_params, ids)

    # The programs

    def collect(
        self, lora: Params, frozen: FrozenParams, inputs: PromptFeatures, key: Key
    ) -> tuple[Pairs, dict[str, Array]]:
        """Runs a rollout of the policy and makes pairs of it; see `spo_jax.methods.spo.update.collect`."""
        return collect(*self._rollout_inputs(lora, frozen, inputs, key))

    def judged_rollout(
        self, lora: Params, frozen: FrozenParams, inputs: PromptFeatures, key: Key
    ) -> tuple[JudgedRollout, Draws]:
        """Runs the rollout of `collect`, and returns all of it with its randomness."""
        rollout_inputs = self._rollout_inputs(lora, frozen, inputs, key)
        return judged_rollout(*rollout_inputs), rollout_inputs[-1]

    def _rollout_inputs(
        self, lora: Params, frozen: FrozenParams, inputs: PromptFeatures, key: Key
    ) -> tuple[Denoise, Score, SPOSettings, Process, Draws]:
        """Binds what `spo_jax.methods.spo.update.collect` takes to models and prompts."""
        settings = self.settings.spo
        network, lora = self.policy.at_rest(frozen.network, lora)
        denoise = self.policy.sampler(network, lora, inputs.condition, frozen.unconditional)

        def score(
            latents: Float[Array, "n h w c"], t: Int[Array, " n"], row: Int[Array, " n"]
        ) -> Float[Array, " n"]:  # fmt: skip
            return self.judge.score(frozen.judge, latents, take_rows(inputs.judge, row), t)

        draws = draw(key, settings, count_rows(inputs.condition), self.pipeline.latent_shape)
        return denoise, score, settings, self.process, draws

    def update(
        self, state: TrainState, frozen: FrozenParams, inputs: PromptFeatures, pairs: Pairs, key: Key
    ) -> tuple[TrainState, dict[str, Array]]:
        """Trains on the pairs of a rollout; see `spo_jax.methods.spo.update.update`."""
        condition = gathered(inputs.condition)  # small, and any pair may be trained on by any device
        predict = self.policy.predictor(frozen.network, condition, frozen.unconditional)
        optimizer = make_optimizer(self.settings.optimizer)
        return update(state, predict, self.process, self.settings.spo, optimizer, pairs, key)

    def trace(self, state: TrainState, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces both programs, ``collect`` and ``update``.

        On a mesh, the programs expect state and weights with the shardings that they have now, and a batch with those
        that `feed` gives it. The results (pairs, metrics, the state) have a full copy on every device. ``update``
        donates the state.

        Args:
          state: arrays or shapes.
          keep_unused: whether the programs keep arguments that they do not read.
        """
        everywhere = replicated(self.mesh) if self.mesh else None
        options = {"out_shardings": everywhere, "keep_unused": keep_unused}
        key = shapes_of(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
        state = shapes_of(state)
        frozen = self.frozen_shapes()
        inputs = self.feature_shapes()
        collect = jax.jit(self.collect, **options).trace(state.params, frozen, inputs, key)
        pairs = shapes_of(collect.out_info[0], everywhere)
        rounding = {} if self.pipeline.dtype == jnp.float32 else _EQUAL_ROUNDING
        update = jax.jit(self.update, donate_argnums=0, compiler_options=rounding, **options)
        update = update.trace(state, frozen, inputs, pairs, key)
        return {"collect": collect, "update": update}


def _rows(count: int, one: PyTree, sharding: jax.sharding.Sharding | None) -> PyTree:
    """Returns the shapes of ``count`` rows like the single row of ``one``."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=sharding), one)
