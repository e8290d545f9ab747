"""A run of D3PO: pairs of trajectories from the same latents, and DPO of every step by their last images."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.methods.common.policy import Predict
from spo_jax.methods.common.prompts import PromptData
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.common.trajectories import Trajectories
from spo_jax.methods.common.trajectory_model import TrajectoryModel
from spo_jax.methods.common.trajectory_run import CHARTS, TrajectoryRun
from spo_jax.methods.common.trajectory_update import StepLoss
from spo_jax.methods.d3po.objective import d3po_loss, preferences
from spo_jax.methods.d3po.settings import D3POTrainSettings


def setup(
    settings: D3POTrainSettings, mesh: Mesh, data: PromptData | None = None, folder: Path | None = None
) -> "D3PORun":
    """Loads model and rewards; see `spo_jax.methods.base.Method`.

    Raises:
      UserError: the model or a reward cannot be loaded, or they do not fit.
    """
    del folder
    return D3PORun(D3PO.open(settings, mesh, data), data)


@dataclasses.dataclass(frozen=True)
class D3PO(TrajectoryModel):
    """The method bound to its models; see `spo_jax.methods.common.trajectory_model.TrajectoryModel`."""

    settings: D3POTrainSettings

    MEMBERS: ClassVar = 2
    ONE_START: ClassVar = True
    METRICS: ClassVar = ("loss", "margin", "ratio", "clip_fraction")

    def learn(
        self,
        state: TrainState,
        predict: Predict,
        prompt: Int[Array, " b"],
        trajectories: Trajectories,
        scores: Float[Array, "n r"],
        key: Key,
    ) -> tuple[TrainState, dict[str, Array]]:
        """Computes which image of each pair is preferred, and trains on the steps of both."""
        del prompt
        pairs = scores.reshape(-1, 2, scores.shape[1])  # [n r] -> [b 2 r]
        preference = preferences(pairs)
        state, metrics = self.train(state, self.loss(predict, trajectories, preference), key)
        ties = (preference == 0).all(1)
        return state, {
            "reward_gap": jnp.abs(pairs[:, 0] - pairs[:, 1]).mean(0),
            "ties": ties.mean(dtype=jnp.float32),
            **metrics,
        }

    def loss(self, predict: Predict, trajectories: Trajectories, preference: Float[Array, "b 2"]) -> StepLoss:
        """Returns the loss of some steps of a rollout.

        Args:
          predict: guided prediction of the policy with an adapter, and of the reference with None.
          trajectories: the rollout.
          preference: h of each pair, as `preferences` returns it.
        """
        own = self.settings.d3po
        steps_of = self.steps(trajectories)

        def loss(
            lora: Params, item: Int[Array, " c"], step: Int[Array, " c"], weight: Float[Array, " c"]
        ) -> tuple[Array, dict[str, Array], Array]:
            steps = steps_of(item, step)
            logp, ref_logp = self.log_probs(predict, lora, steps), self.log_probs(predict, None, steps)
            h = preference[item]
            out = d3po_loss(logp, ref_logp, h, beta=own.beta, eps=own.eps)
            error = jnp.abs(out.ratio - 1)
            total = (out.loss * weight).sum()
            metrics = {
                "loss": total,
                "margin": ((h * (logp - ref_logp)).sum(1) * weight).sum(),
                "ratio": (out.ratio.mean(1) * weight).sum(),
                "clip_fraction": ((error > own.eps).mean(1) * weight).sum(),
            }
            return total, metrics, error.mean(1) * weight

        return loss


class D3PORun(TrajectoryRun):
    """A run of D3PO; see `spo_jax.methods.base.Run`."""

    METHOD = "d3po"
    REFERENCE_RATIO = True
    CLIP = "eps"
    charts = {
        **CHARTS,
        "margin": ("Margin", "log ratio of the preferred step minus that of the other; above 0: it prefers them too"),
        "reward_gap": ("Difference of the rewards of a pair", "without any, every pair is a tie"),
        "ties": ("Share of ties", "pairs of which neither image is preferred; they give no gradient"),
    }
