"""Settings of methods that draw whole trajectories, have their last images judged, and train on their steps."""

import dataclasses
from typing import ClassVar

from spo_jax.core.config import MAX_BATCH, MAX_GUIDANCE, MAX_STEPS, Settings, setting
from spo_jax.methods.common.settings import OnlineSettings, names_in
from spo_jax.parallel.sizes import padded_chunk


@dataclasses.dataclass(frozen=True)
class TrajectorySettings(Settings):
    """Rollouts, the reward of their last images, and the training batches; a subclass sets `UNIT` and `copies`."""

    UNIT: ClassVar = ""  # what a training batch consists of

    reward: str = setting(
        "spm",
        "Reward of finished images: a name in spo_jax.rewards (NAME or NAME:SOURCE), or a dotted path of your own; one "
        "that is computed on the host gets the images between two programs.",
    )
    score: str = setting("", "Name of the score that counts, if the reward gives several (empty: its first one).")
    num_steps: int = setting(50, "Number of sampling steps T.", at_least=1, at_most=MAX_STEPS)
    eta: float = setting(
        1.0, "Stochasticity of the steps, 1 as in DDPM; not 0, because steps without noise have no likelihood.", above=0
    )
    guidance_scale: float = setting(
        5.0,
        "Classifier-free guidance scale w, in sampling and in training (1: none, at half the cost).",
        at_least=-MAX_GUIDANCE,
        at_most=MAX_GUIDANCE,
    )
    timestep_fraction: float = setting(
        1.0, "Share of the steps of a trajectory that are trained on, drawn anew in every pass.", above=0, at_most=1
    )
    passes: int = setting(1, "Number of passes over the trajectories of a batch.", at_least=1, at_most=1000)
    rollout_chunk: int = setting(
        8, "Number of images that a device draws at a time.", at_least=1, at_most=MAX_BATCH, memory="lower"
    )
    train_chunk: int = setting(
        8,
        "Number of steps that a device has in memory at a time; changes results only by rounding.",
        at_least=1,
        at_most=MAX_BATCH,
        memory="lower",
    )
    decode_chunk: int = setting(
        0,
        "Number of images that a device decodes and judges at a time (0: as suits the platform, which is 8 on TPUs up "
        "to 768 px and otherwise 4).",
        at_least=0,
        at_most=MAX_BATCH,
        memory="lower",
    )
    decoder: str = setting(
        "vae", "Decoder of the judged images: vae, or the folder or hub id of a distilled one (AutoencoderTiny)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.reward_names), "reward", "the name of a reward, such as 'spm'")

    @property
    def copies(self) -> int:
        """The number of trajectories of a prompt."""
        raise NotImplementedError

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The names of the rewards, in order."""
        return names_in(self.reward)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of the scores that count; empty for the first score of every reward."""
        return names_in(self.score)

    @property
    def trained_steps(self) -> int:
        """The number of steps of a trajectory that are trained on in a pass."""
        return max(int(self.num_steps * self.timestep_fraction), 1)

    def chunk(self, batch: int, devices: int) -> int:
        """Returns the number of rows in memory at a time, on all devices together.

        Args:
          batch: number of items of a training batch.
          devices: number of devices.
        """
        return padded_chunk(batch * self.trained_steps, self.train_chunk, devices)


@dataclasses.dataclass(frozen=True)
class TrajectoryTrainSettings(OnlineSettings):
    """Base of all settings of a run of such a method, whose group is named after the method."""

    BATCHES: ClassVar = {"prompts_per_batch": "prompts"}

    @property
    def own(self) -> TrajectorySettings:
        """The method's group."""
        raise NotImplementedError

    @property
    def items(self) -> int:
        """The number of items of a rollout: whatever a training batch consists of."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.own.train_batch_size
        expected = f"a number that divides the {self.items} {self.own.UNIT} of a batch (prompts_per_batch)"
        self.own.require(self.items % size == 0, "train_batch_size", expected)
