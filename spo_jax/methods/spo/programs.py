"""SPO bound to its models: the two programs and their inputs."""

import dataclasses

import jax
from jax.sharding import Mesh

from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.checks import reward_options
from spo_jax.methods.common.judge import Judge, open_judge
from spo_jax.methods.common.online import FrozenParams, OnlineModel, PromptFeatures
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Pairs, Policy, equal_rounding
from spo_jax.methods.spo.judging import JudgedRollout, Score, judged_rollout
from spo_jax.methods.spo.pairs import NoisePairs
from spo_jax.methods.spo.resampler import Denoise, Draws, draw, judged_timesteps
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.methods.spo.state import SPOState, sampling_params
from spo_jax.methods.spo.update import collect, update
from spo_jax.models.base import Pipeline, count_rows
from spo_jax.parallel.mesh import gathered, replicated
from spo_jax.parallel.sharding import shapes_of


def open_rollout_judge(
    settings: SPOTrainSettings, pipeline: Pipeline, mesh: Mesh | None = None, abstract: bool = False
) -> Judge:
    """Loads the judge of the rollouts of a pipeline; see `spo_jax.methods.common.judge.open_judge`.

    Raises:
      UserError: it cannot be loaded, or does not judge what the settings show it.
    """
    spo = settings.spo
    return open_judge(
        spo.reward,
        reward_options(settings, spo.reward),
        pipeline,
        decoder=spo.decoder,
        group="spo",
        mesh=mesh,
        abstract=abstract,
        noisy=spo.judged == "noisy",
        timesteps=judged_timesteps(spo, pipeline.process(spo.num_steps)).tolist(),
    )


@dataclasses.dataclass(frozen=True)
class SPO(OnlineModel):
    """The method bound to its models; see `spo_jax.methods.common.online.OnlineModel` for the attributes."""

    settings: SPOTrainSettings
    judge: Judge

    @property
    def process(self) -> Process:
        """The diffusion process, divided into the rollout's steps."""
        return self.pipeline.process(self.settings.spo.num_steps)

    @property
    def policy(self) -> Policy:
        """The model as a policy with an adapter."""
        return Policy(self.pipeline, self.settings.spo.guidance_scale, self.settings.lora.scale)

    def collect(
        self, lora: Params, frozen: FrozenParams, inputs: PromptFeatures, key: Key
    ) -> tuple[Pairs | NoisePairs, dict[str, Array]]:
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
        self, state: SPOState, frozen: FrozenParams, inputs: PromptFeatures, pairs: Pairs | NoisePairs, key: Key
    ) -> tuple[SPOState, dict[str, Array]]:
        """Trains on the pairs of a rollout; see `spo_jax.methods.spo.update.update`."""
        condition = gathered(inputs.condition)  # small, and any pair may be trained on by any device
        predict = self.policy.predictor(frozen.network, condition, frozen.unconditional)
        settings = self.settings
        optimizer = make_optimizer(settings.optimizer)
        accumulation = settings.optimizer.gradient_accumulation_steps
        return update(state, predict, self.process, settings.spo, optimizer, pairs, key, accumulation)

    def trace(self, state: SPOState, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
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
        collect = jax.jit(self.collect, **options).trace(sampling_params(state), frozen, inputs, key)
        pairs = shapes_of(collect.out_info[0], everywhere)
        update = jax.jit(self.update, donate_argnums=0, compiler_options=equal_rounding(self.pipeline.dtype), **options)
        update = update.trace(state, frozen, inputs, pairs, key)
        return {"collect": collect, "update": update}
