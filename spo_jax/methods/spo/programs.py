"""SPO bound to its models: the two programs and their inputs."""

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Int, Key, Params, PyTree
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.checks import reward_options
from spo_jax.methods.common.judge import Judge, open_judge
from spo_jax.methods.common.online import FrozenParams, OnlineModel, PromptFeatures
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Pairs, Policy, equal_rounding
from spo_jax.methods.spo.judging import JudgedRollout, Score, judged_rollout
from spo_jax.methods.spo.pairs import NoisePairs
from spo_jax.methods.spo.plan import judged_timesteps
from spo_jax.methods.spo.resampler import Denoise, Draws, draw
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.methods.spo.state import SPOState, sampling_params
from spo_jax.methods.spo.update import collect, update
from spo_jax.models.base import Decoder, Pipeline, count_rows
from spo_jax.parallel.mesh import gathered, replicated
from spo_jax.parallel.sharding import shapes_of
from spo_jax.rewards.base import DeviceReward


@dataclasses.dataclass(frozen=True)
class TwoJudges:
    """The judge of noisy candidates, and the second one, which judges what is predicted from those of the last pools.

    Attributes:
      first: judge of noisy latents.
      second: judge of images or clean latents.
    """

    first: Judge
    second: Judge

    @property
    def reward(self) -> DeviceReward:
        """The second judge's reward, which scores finished images as well."""
        return self.second.reward

    @property
    def decoder(self) -> Decoder | None:
        """The second judge's decoder."""
        return self.second.decoder

    @property
    def params(self) -> Params:
        """The weights of both, which are an argument of programs."""
        return {"first": self.first.params, **self.second.params}

    def features(self, prompts: Sequence[str]) -> PyTree:
        """Computes the features of prompts that both need, one row each, on the host."""
        return {"first": self.first.features(prompts), "second": self.second.features(prompts)}

    def feature_shapes(self) -> PyTree:
        """Returns the shapes of one row of `features`."""
        return {"first": self.first.feature_shapes(), "second": self.second.feature_shapes()}


def open_rollout_judge(
    settings: SPOTrainSettings, pipeline: Pipeline, mesh: Mesh | None = None, abstract: bool = False
) -> Judge | TwoJudges:
    """Loads the judge of the rollouts of a pipeline, or both; see `spo_jax.methods.common.judge.open_judge`.

    Raises:
      UserError: one cannot be loaded, or does not judge what the settings show it.
    """
    spo = settings.spo
    where = {"group": "spo", "mesh": mesh, "abstract": abstract}
    first = open_judge(
        spo.reward,
        reward_options(settings, spo.reward),
        pipeline,
        decoder="vae" if spo.second_reward else spo.decoder,
        noisy=spo.judged == "noisy",
        timesteps=judged_timesteps(spo, pipeline.process(spo.num_steps).timesteps).tolist(),
        **where,
    )
    if not spo.second_reward:
        return first
    options = reward_options(settings, spo.second_reward)
    second = open_judge(
        spo.second_reward, options, pipeline, decoder=spo.decoder, field="second_reward", **where
    )  # fmt: skip
    return TwoJudges(first, second)


@dataclasses.dataclass(frozen=True)
class SPO(OnlineModel):
    """The method bound to its models; see `spo_jax.methods.common.online.OnlineModel` for the attributes."""

    settings: SPOTrainSettings
    judge: Judge | TwoJudges

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
        *rollout_inputs, draws, second = self._rollout_inputs(lora, frozen, inputs, key)
        return judged_rollout(*rollout_inputs, draws, second), draws

    def _rollout_inputs(
        self, lora: Params, frozen: FrozenParams, inputs: PromptFeatures, key: Key
    ) -> tuple[Denoise, Score, SPOSettings, Process, Draws, Score | None]:
        """Binds what `spo_jax.methods.spo.update.collect` takes to models and prompts."""
        settings = self.settings.spo
        network, lora = self.policy.at_rest(frozen.network, lora)
        denoise = self.policy.sampler(network, lora, inputs.condition, frozen.unconditional)

        score, second = self._scores(frozen.judge, inputs.judge)
        draws = draw(key, settings, count_rows(inputs.condition), self.pipeline.latent_shape)
        return denoise, score, settings, self.process, draws, second

    def _scores(self, params: Params, features: PyTree) -> tuple[Score, Score | None]:
        """Binds the judge to weights and prompts, and the second one if there is one."""

        def of(judge: Judge, params: Params, features: PyTree) -> Score:
            def score(
                latents: Float[Array, "n h w c"], t: Int[Array, " n"], row: Int[Array, " n"]
            ) -> Float[Array, " n"]:  # fmt: skip
                return judge.score(params, latents, take_rows(features, row), t)

            return score

        if isinstance(self.judge, TwoJudges):
            first = of(self.judge.first, params["first"], features["first"])
            return first, of(self.judge.second, params, features["second"])
        return of(self.judge, params, features), None

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
