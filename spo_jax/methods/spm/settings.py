"""Settings for training a step-aware preference model; the defaults are those published for SD 1.5."""

import dataclasses
from typing import ClassVar

from spo_jax import toy
from spo_jax.core.config import MAX_BATCH, MAX_COUNT, MAX_GUIDANCE, Settings, seed_setting, setting
from spo_jax.methods.common.settings import ModelSettings, OptimizerSettings, PairSettings
from spo_jax.run.settings import LogSettings, RunSettings


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
class AccuracySettings(Settings):
    """Pair accuracy on pairs that have a human label."""

    GROUP: ClassVar = "eval."

    timesteps: tuple[int, ...] = setting(
        (0, 251, 501, 701, 951), "Timesteps to which images are noised; 0 is the clean image itself."
    )
    pairs: int = setting(0, "Use only the first N pairs of the split (0: all).", at_least=0, at_most=MAX_COUNT)
    batch: int = setting(
        64, "Number of pairs to measure at a time, over all devices.", at_least=1, at_most=MAX_BATCH, memory="lower"
    )
    seed: int = seed_setting(1234, "Seed of the noise.")

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.timesteps and all(type(t) is int and t >= 0 for t in self.timesteps)
        once = known and len(set(self.timesteps)) == len(self.timesteps)
        self.require(bool(once), "timesteps", "whole numbers from 0 on, each of them once")


@dataclasses.dataclass(frozen=True)
class SPMTrainSettings(PairSettings, ModelSettings, RunSettings):
    """All settings of a run that trains a preference model."""

    FREE_FIELDS: ClassVar = (
        *RunSettings.FREE_FIELDS, *PairSettings.FREE_FIELDS, "eval", "remat", "export_dtype", "relabel.folder",
    )  # fmt: skip
    LENGTH: ClassVar = ("train_steps",)
    BATCHES: ClassVar = {"batch_size": "pairs", "eval.batch": "evaluation"}

    method: str = setting("spm", "Training method: spm trains a step-aware preference model.")
    init: str = setting(
        toy.NAME,
        "Model to start from: folder, file or hub id of a plain CLIP (PickScore) or of a step-aware preference model.",
    )
    init_random: bool = setting(False, "Take only the config of init and start from random weights.")
    tokenizer: str = setting("", "Folder or hub id of the tokenizer, if init holds none.")
    eval_split: str = setting("validation_unique", "Split to measure on.")
    train_steps: int = setting(8000, "Number of batches of the whole run.", at_least=1, at_most=MAX_COUNT)
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
    flip: bool = setting(False, "Mirror both images of half of the pairs; not possible with cache_latents.")
    export_dtype: str = setting("float32", "Dtype of the weights in spm/.", choices=("float32", "float16"))
    optimizer: OptimizerSettings = OptimizerSettings(
        learning_rate=3e-6, schedule="linear", warmup_steps=500, weight_decay=0.3
    )
    relabel: RelabelSettings = RelabelSettings()
    log: LogSettings = LogSettings(checkpoint_every=1000, eval_every=1000)
    eval: AccuracySettings = AccuracySettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.optimizer.check_warmup(self.train_steps)
        expected = "False, because the cache of config field cache_latents has no latents of mirrored images"
        self.require(not (self.flip and self.cache_latents), "flip", expected)
