"""A method that learns from finished images, bound to its models: its two programs and their inputs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.final_judge import FinalJudge, open_final_judge
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.online import FrozenParams, OnlineModel, PromptFeatures
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Policy, Predict, equal_rounding, step_log_probs
from spo_jax.methods.common.prompts import PromptData
from spo_jax.methods.common.state import State
from spo_jax.methods.common.trajectories import Steps, Trajectories, draw, prompt_rows, sample, take_steps
from spo_jax.methods.common.trajectory_settings import TrajectoryTrainSettings
from spo_jax.methods.common.trajectory_update import StepLoss, train
from spo_jax.parallel.mesh import gathered, over_batch, replicated
from spo_jax.parallel.sharding import shapes_of


class Drawn(NamedTuple):
    """What the rollout of a batch has drawn.

    Attributes:
      trajectories: the rollout.
      finished: scores of the last latents or, for a reward on the host, the images.
    """

    trajectories: Trajectories
    finished: Float[Array, "n r"] | Float[Array, "n H W 3"]


@dataclasses.dataclass(frozen=True)
class TrajectoryModel(OnlineModel):
    """The base of such methods; see `spo_jax.methods.common.online.OnlineModel` for the attributes.

    A subclass defines `learn`.

    Attributes:
      MEMBERS: number of trajectories of an item of a training batch.
      ONE_START: whether the trajectories of a prompt start from the same latents.
      METRICS: names of the metrics of `StepLoss`.
    """

    settings: TrajectoryTrainSettings
    judge: FinalJudge

    MEMBERS: ClassVar[int] = 1
    ONE_START: ClassVar[bool] = False
    METRICS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def open(cls, settings: TrajectoryTrainSettings, mesh: Mesh, data: PromptData | None) -> "TrajectoryModel":
        """Loads model and rewards, or only their shapes if there is no data.

        Raises:
          UserError: the model or a reward cannot be loaded, or they do not fit.
        """
        abstract = data is None
        pipeline = open_model(settings, mesh, abstract)
        judge = open_final_judge(settings, pipeline, mesh, abstract, data.prompts if data else ())
        return cls(settings, pipeline, judge, mesh)

    @property
    def process(self) -> Process:
        """The diffusion process, divided into the rollout's steps."""
        return self.pipeline.process(self.settings.own.num_steps)

    @property
    def policy(self) -> Policy:
        """The model as a policy with an adapter."""
        return Policy(self.pipeline, self.settings.own.guidance_scale, self.settings.lora.scale)

    def rollout(self, lora: Params, frozen: FrozenParams, inputs: PromptFeatures, key: Key) -> Drawn:
        """Draws the trajectories of a batch of prompts, and scores their last latents; this is a compiled program.

        Args:
          lora: the adapter.
          frozen: weights that training does not change.
          inputs: features of the batch's prompts.
          key: the batch's key.
        """
        own = self.settings.own
        prompts = self.settings.prompts_per_batch
        row = prompt_rows(prompts, own.copies)
        network, lora = self.policy.at_rest(frozen.network, lora)
        predict = self.policy.predictor(network, gathered(inputs.condition), frozen.unconditional)
        noise = draw(key, own.num_steps, prompts, own.copies, self.pipeline.latent_shape, self.ONE_START)
        drawn = sample(functools.partial(predict, lora), self.process, own.eta, noise, row, own.rollout_chunk)
        judged = gathered(inputs.judge)
        finished = self.judge.finish(frozen.judge, drawn.latents[-1], judged, row, own.decode_chunk)
        # Any device may train on any step, so every device gets what one device alone would hold.
        return Drawn(gathered(drawn), finished)

    def update(
        self,
        state: State,
        frozen: FrozenParams,
        inputs: PromptFeatures,
        prompt: Int[Array, " b"],
        trajectories: Trajectories,
        scores: Float[Array, "n r"],
        key: Key,
    ) -> tuple[State, dict[str, Array]]:
        """Learns from the scores of a rollout; this is a compiled program.

        Args:
          state: the current state.
          frozen: weights that training does not change.
          inputs: features of the batch's prompts.
          prompt: number of each prompt, the same wherever the run draws that text.
          trajectories: the rollout.
          scores: scores of its images.
          key: the batch's key.

        Returns:
          The next state; the metrics of `train`, ``reward``, which is the mean of every score, and the method's own.
        """
        condition = gathered(inputs.condition)  # small, and any device may train on any step
        predict = self.policy.predictor(frozen.network, condition, frozen.unconditional)
        state, metrics = self.learn(state, predict, prompt, trajectories, scores, key)
        return state, {"reward": scores.mean(0), **metrics}

    def learn(
        self,
        state: State,
        predict: Predict,
        prompt: Int[Array, " b"],
        trajectories: Trajectories,
        scores: Float[Array, "n r"],
        key: Key,
    ) -> tuple[State, dict[str, Array]]:
        """Learns as `update`, with the policy's predictions in place of weights and features."""
        raise NotImplementedError

    def train(self, state: State, loss: StepLoss, key: Key) -> tuple[State, dict[str, Array]]:
        """Trains on all items of a rollout; see `spo_jax.methods.common.trajectory_update.train`."""
        settings = self.settings
        optimizer = make_optimizer(settings.optimizer)
        return train(state, loss, settings.own, optimizer, settings.items, key, self.METRICS)

    def steps(self, trajectories: Trajectories) -> Callable[[Array, Array], Steps]:
        """Returns the function from (items, numbers of steps) to these steps of a rollout."""
        return functools.partial(take_steps, trajectories, self.process, self.MEMBERS, self.settings.own.copies)

    def log_probs(self, predict: Predict, lora: Params | None, steps: Steps) -> Float[Array, "n m"]:
        """Computes how likely steps are under the policy with an adapter, or under the reference (None)."""
        predicted = functools.partial(predict, lora)
        eta = self.settings.own.eta
        return step_log_probs(predicted, self.process, eta, steps.x_t, steps.x_prev, steps.t, steps.row)

    def trace(self, state: State, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces both programs, ``rollout`` and ``update``.

        On a mesh, the programs expect state and weights with the shardings that they have now, and a batch with those
        that `feed` gives it. The results have a full copy on every device, but for images. ``update`` donates the
        state.

        Args:
          state: arrays or shapes.
          keep_unused: whether the programs keep arguments that they do not read.
        """
        everywhere = replicated(self.mesh) if self.mesh else None
        options = {"keep_unused": keep_unused, "compiler_options": equal_rounding(self.pipeline.dtype)}
        key = shapes_of(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
        state = shapes_of(state)
        frozen = self.frozen_shapes()
        inputs = self.feature_shapes()
        out = everywhere
        if self.mesh and self.judge.on_host:
            out = Drawn(everywhere, over_batch(self.mesh))
        rollout = jax.jit(self.rollout, out_shardings=out, **options).trace(state.params, frozen, inputs, key)
        prompts, images = self.settings.prompts_per_batch, self.settings.prompts_per_batch * self.settings.own.copies
        prompt = jax.ShapeDtypeStruct((prompts,), jnp.int32, sharding=everywhere)
        scores = jax.ShapeDtypeStruct((images, len(self.judge.names)), jnp.float32, sharding=everywhere)
        trajectories = shapes_of(rollout.out_info.trajectories, everywhere)
        update = jax.jit(self.update, donate_argnums=0, out_shardings=everywhere, **options)
        update = update.trace(state, frozen, inputs, prompt, trajectories, scores, key)
        return {"rollout": rollout, "update": update}
