"""Settings for training a latent reward model; the defaults are those published, but for length and batches."""

import dataclasses

from spo_jax.core.config import MAX_GUIDANCE, setting
from spo_jax.methods.common.preference.settings import AccuracySettings, JudgeTrainSettings
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.rewards.common.lrm_files import TRAINING_TIMESTEPS


@dataclasses.dataclass(frozen=True)
class LRMTrainSettings(JudgeTrainSettings):
    """All settings of a run that trains a latent reward model.

    Its UNet and text encoders start from those of ``model``.
    """

    method: str = setting("lrm", "Training method: lrm trains a latent reward model.")
    init: str = setting(
        "", "Latent reward model to go on from: a folder, or OWNER/NAME/FOLDER on the hub (empty: model itself)."
    )
    clip: str = setting(
        "",
        "Folder or hub id of the CLIP whose text projection the model of an SD starts with, as published (empty: it is "
        "drawn at random, with projection features). SDXL has one in its second text encoder.",
    )
    projection: int = setting(
        768, "Number of features that are compared, where no other part decides on it.", at_least=1, at_most=2**14
    )
    scale: float = setting(2.6592, "Logarithm of the factor of the cosine at the start.", at_least=-10, at_most=10)
    guidance_scale: float = setting(
        7.5,
        "Guidance inside of the model, of its middle block; 1 runs the network only once.",
        at_least=-MAX_GUIDANCE,
        at_most=MAX_GUIDANCE,
    )
    largest_timestep: int = setting(
        951, "Largest timestep to which images are noised.", at_least=1, at_most=TRAINING_TIMESTEPS - 1
    )
    timestep_interval: int = setting(
        50,
        "Images are noised to the timesteps 1, 1 + this, … up to the largest one, all equally often.",
        at_least=1,
        at_most=TRAINING_TIMESTEPS,
    )
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-5, warmup_steps=500, weight_decay=0.3)
    eval: AccuracySettings = AccuracySettings(timesteps=(1, 251, 501, 701, 951))

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "empty, because the model of config field init has a text projection"
        self.require(not (self.init and self.clip), "clip", expected)

    @property
    def trained_timesteps(self) -> range:
        """The timesteps to which images are noised."""
        return range(1, self.largest_timestep + 1, self.timestep_interval)

    @property
    def judged_timesteps(self) -> tuple[int, int]:
        """The lowest and the highest timestep at which the model may judge: up to the next that it was not shown."""
        return 0, min(self.trained_timesteps[-1] + self.timestep_interval, TRAINING_TIMESTEPS) - 1
