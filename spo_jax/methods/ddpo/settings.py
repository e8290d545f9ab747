"""Settings of DDPO; the defaults are those published for SD 1.5 where they do not depend on the reward."""

import dataclasses
from typing import ClassVar

from spo_jax.core.config import MAX_BATCH, setting
from spo_jax.methods.common.trajectory_settings import TrajectorySettings, TrajectoryTrainSettings


@dataclasses.dataclass(frozen=True)
class DDPOSettings(TrajectorySettings):
    """Rollouts, advantages and the update."""

    GROUP: ClassVar = "ddpo."
    UNIT: ClassVar = "images"

    samples_per_prompt: int = setting(
        8, "Number of images of each prompt of a batch.", at_least=1, at_most=MAX_BATCH, memory="lower"
    )
    train_batch_size: int = setting(
        16, "Number of images whose steps make an optimizer step, over all devices.", at_least=1, at_most=MAX_BATCH
    )
    clip_range: float = setting(1e-4, "Likelihood ratios are clipped to 1 ± clip_range.", above=0, below=1)
    adv_clip_max: float = setting(5.0, "Advantages are clamped to ± this.", above=0)
    buffer_size: int = setting(
        16,
        "Number of latest rewards of a prompt that are kept for its mean and standard deviation (0: none are kept, and "
        "those of the whole batch are taken).",
        at_least=0,
        at_most=MAX_BATCH,
    )
    min_count: int = setting(
        16,
        "Number of rewards of a prompt from which on its own mean and standard deviation are taken, and not those of "
        "the batch.",
        at_least=1,
        at_most=MAX_BATCH,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "one reward, such as 'spm'; a weighted sum of several is 'sum:1*aesthetic+0.5*pickscore'"
        self.require(len(self.reward_names) == 1, "reward", expected)
        self.require(len(self.score_names) <= 1, "score", "the name of one score")
        expected = f"at most the {self.buffer_size} rewards that ddpo.buffer_size keeps"
        self.require(not self.buffer_size or self.min_count <= self.buffer_size, "min_count", expected)

    @property
    def copies(self) -> int:
        """The number of trajectories of a prompt."""
        return self.samples_per_prompt


@dataclasses.dataclass(frozen=True)
class DDPOTrainSettings(TrajectoryTrainSettings):
    """All settings of a run of DDPO."""

    FREE_FIELDS: ClassVar = (
        *TrajectoryTrainSettings.FREE_FIELDS, "ddpo.decode_chunk", "ddpo.rollout_chunk", "ddpo.train_chunk",
    )  # fmt: skip

    ddpo: DDPOSettings = DDPOSettings()

    @property
    def own(self) -> DDPOSettings:
        """The method's group."""
        return self.ddpo

    @property
    def items(self) -> int:
        """The number of images of a batch."""
        return self.prompts_per_batch * self.ddpo.samples_per_prompt
