"""Settings of D3PO; the defaults are those published for SD 1.5."""

import dataclasses
from typing import ClassVar

from spo_jax.core.config import MAX_BATCH, MAX_STEPS, setting
from spo_jax.methods.common.trajectory_settings import TrajectorySettings, TrajectoryTrainSettings


@dataclasses.dataclass(frozen=True)
class D3POSettings(TrajectorySettings):
    """Rollouts, preferences and the update."""

    GROUP: ClassVar = "d3po."
    UNIT: ClassVar = "pairs"

    reward: str = setting(
        "spm",
        "Reward of finished images: a name in spo_jax.rewards (NAME or NAME:SOURCE), or a dotted path of your own; one "
        "that is computed on the host gets the images between two programs. With several, separated by commas, an "
        "image is preferred if it is worse in none of them and better in one.",
    )
    score: str = setting(
        "",
        "Names of the scores that count, separated by commas, if a reward gives several (empty: the first of each).",
    )
    num_steps: int = setting(20, "Number of sampling steps T.", at_least=1, at_most=MAX_STEPS)
    train_batch_size: int = setting(
        10, "Number of pairs whose steps make an optimizer step, over all devices.", at_least=1, at_most=MAX_BATCH
    )
    beta: float = setting(0.1, "Factor of the log ratios inside the sigmoid.", above=0, at_most=10**6)
    eps: float = setting(
        0.1, "Likelihood ratios are clipped to 1 ± eps; below 1, so that they stay positive.", above=0, below=1
    )

    @property
    def copies(self) -> int:
        """The number of trajectories of a prompt."""
        return 2


@dataclasses.dataclass(frozen=True)
class D3POTrainSettings(TrajectoryTrainSettings):
    """All settings of a run of D3PO."""

    FREE_FIELDS: ClassVar = (
        *TrajectoryTrainSettings.FREE_FIELDS, "d3po.decode_chunk", "d3po.rollout_chunk", "d3po.train_chunk",
    )  # fmt: skip

    d3po: D3POSettings = D3POSettings()

    @property
    def own(self) -> D3POSettings:
        """The method's group."""
        return self.d3po

    @property
    def items(self) -> int:
        """The number of pairs of a batch, one of each prompt."""
        return self.prompts_per_batch
