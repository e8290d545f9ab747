"""A run of DDPO: the policy gradient of finished images' rewards, with clipped likelihood ratios."""

import dataclasses
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.methods.common.policy import Predict
from spo_jax.methods.common.prompts import PromptData
from spo_jax.methods.common.trajectories import Trajectories
from spo_jax.methods.common.trajectory_model import TrajectoryModel
from spo_jax.methods.common.trajectory_run import CHARTS, TrajectoryRun
from spo_jax.methods.common.trajectory_update import StepLoss
from spo_jax.methods.ddpo.advantages import History, advantages, empty_history
from spo_jax.methods.ddpo.objective import ddpo_loss
from spo_jax.methods.ddpo.settings import DDPOTrainSettings
from spo_jax.parallel.sharding import make


class DDPOState(NamedTuple):
    """The state of a run.

    Attributes:
      params: the adapter.
      opt_state: the optimizer's moments.
      step: number of finished training batches.
      history: the latest rewards of every prompt.
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]
    history: History


def setup(
    settings: DDPOTrainSettings, mesh: Mesh, data: PromptData | None = None, folder: Path | None = None
) -> "DDPORun":
    """Loads model and reward; see `spo_jax.methods.base.Method`.

    Raises:
      UserError: the model or a reward cannot be loaded, or they do not fit.
    """
    del folder
    return DDPORun(DDPO.open(settings, mesh, data), data)


@dataclasses.dataclass(frozen=True)
class DDPO(TrajectoryModel):
    """The method bound to its models; see `spo_jax.methods.common.trajectory_model.TrajectoryModel`."""

    settings: DDPOTrainSettings

    METRICS: ClassVar = ("loss", "ratio", "clip_fraction", "approx_kl")

    def learn(
        self,
        state: DDPOState,
        predict: Predict,
        prompt: Int[Array, " b"],
        trajectories: Trajectories,
        scores: Float[Array, "n 1"],
        key: Key,
    ) -> tuple[DDPOState, dict[str, Array]]:
        """Computes the advantages of the images, and trains on the steps that drew them."""
        own = self.settings.ddpo
        rewards = scores[:, 0]
        history, advantage, of_prompt = advantages(
            state.history, jnp.repeat(prompt, own.copies), rewards, own.min_count
        )
        loss = self.loss(predict, trajectories, advantage)
        state, metrics = self.train(state._replace(history=history), loss, key)
        size = jnp.abs(advantage)
        return state, {
            "reward_spread": rewards.std(),
            "advantage/size": size.mean(),
            "advantage/largest": size.max(),
            "own_statistics": of_prompt.mean(dtype=jnp.float32),
            **metrics,
        }

    def loss(self, predict: Predict, trajectories: Trajectories, advantage: Float[Array, " n"]) -> StepLoss:
        """Returns the loss of some steps of a rollout.

        Args:
          predict: guided prediction of the policy with an adapter.
          trajectories: the rollout.
          advantage: advantage of each trajectory.
        """
        own = self.settings.ddpo
        steps_of = self.steps(trajectories)

        def loss(
            lora: Params, item: Int[Array, " c"], step: Int[Array, " c"], weight: Float[Array, " c"]
        ) -> tuple[Array, dict[str, Array], Array]:
            steps = steps_of(item, step)
            logp = self.log_probs(predict, lora, steps)[:, 0]
            old_logp = steps.log_probs[:, 0]
            clips = {"clip_range": own.clip_range, "adv_clip_max": own.adv_clip_max}
            out = ddpo_loss(logp, old_logp, advantage[item], **clips)
            error = jnp.abs(out.ratio - 1)
            total = (out.loss * weight).sum()
            metrics = {
                "loss": total,
                "ratio": (out.ratio * weight).sum(),
                "clip_fraction": ((error > own.clip_range) * weight).sum(),
                "approx_kl": (0.5 * jnp.square(logp - old_logp) * weight).sum(),
            }
            return total, metrics, error * weight

        return loss


class DDPORun(TrajectoryRun):
    """A run of DDPO; see `spo_jax.methods.base.Run`."""

    METHOD = "ddpo"
    REFERENCE_RATIO = False
    CLIP = "clip_range"
    charts = {
        **CHARTS,
        "reward_spread": ("Spread of the reward", "standard deviation in a batch; with none there is nothing to learn"),
        "advantage": ("Advantage", "mean and largest size of a batch, before they are clamped"),
        "own_statistics": ("Share of advantages by their own prompt", "others are relative to the whole batch"),
        "approx_kl": ("Distance from the policy that drew", "half the mean square of the log ratio"),
    }

    def init_state(self, key: Key) -> DDPOState:
        """Returns the state of a fresh adapter without any rewards, with a full copy on every device."""
        prompts = len(self._data.prompts) if self._data else self.settings.prompts_per_batch
        size = self.settings.ddpo.buffer_size
        return DDPOState(*super().init_state(key), make(lambda: empty_history(prompts, size), self.mesh))
