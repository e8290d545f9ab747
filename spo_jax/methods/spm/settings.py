"""Settings for training a step-aware preference model; the defaults are those published for SD 1.5."""

import dataclasses
from typing import ClassVar

from spo_jax import toy
from spo_jax.core.config import MAX_GUIDANCE, Settings, setting
from spo_jax.methods.common.preference.settings import JudgeTrainSettings
from spo_jax.methods.common.settings import OptimizerSettings


@dataclasses.dataclass(frozen=True)
class RelabelSettings(Settings):
    """New labels, which a plain preference model makes from the clean images, as published for SDXL."""

    GROUP: ClassVar = "relabel."

    model: str = setting("", "Folder or hub id of a plain CLIP such as PickScore (empty: keep the human labels).")
    margin: float = setting(
        0.1, "Pairs whose probabilities differ by no more than this become ties.", at_least=0, below=1
    )
    tokenizer: str = setting("", "Folder or hub id of its tokenizer, if the model holds none.")
    folder: str = setting("", "Folder that keeps the scores for other runs (empty: in the run's own folder).")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            is_default = getattr(self, field.name) == field.default
            expected = f"{field.default!r}, because it has no effect without relabel.model"
            self.require(bool(self.model) or is_default, field.name, expected)


@dataclasses.dataclass(frozen=True)
class SPMTrainSettings(JudgeTrainSettings):
    """All settings of a run that trains a preference model."""

    FREE_FIELDS: ClassVar = (*JudgeTrainSettings.FREE_FIELDS, "relabel.folder")

    method: str = setting("spm", "Training method: spm trains a step-aware preference model.")
    init: str = setting(
        toy.NAME,
        "Model to start from: folder, file or hub id of a plain CLIP (PickScore) or of a step-aware preference model.",
    )
    init_random: bool = setting(False, "Take only the config of init and start from random weights.")
    tokenizer: str = setting("", "Folder or hub id of the tokenizer, if init holds none.")
    guidance_scale: float = setting(
        5.0,
        "Classifier-free guidance scale of the clean predictions that are judged.",
        at_least=-MAX_GUIDANCE,
        at_most=MAX_GUIDANCE,
    )
    timestep_power: float = setting(
        1.0,
        "Timesteps are floor(1000 u^power) for uniform u; above 1, low timesteps are more frequent.",
        above=0,
        at_most=1000,
    )
    optimizer: OptimizerSettings = OptimizerSettings(
        learning_rate=3e-6, schedule="linear", warmup_steps=500, weight_decay=0.3
    )
    relabel: RelabelSettings = RelabelSettings()
