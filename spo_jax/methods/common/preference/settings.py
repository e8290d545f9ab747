"""Settings that methods share that train a judge from labelled pairs of images."""

import dataclasses
from typing import ClassVar

from spo_jax.core.config import MAX_BATCH, MAX_COUNT, Settings, seed_setting, setting
from spo_jax.methods.common.settings import ModelSettings, OptimizerSettings, PairSettings
from spo_jax.run.settings import LogSettings, RunSettings


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
class JudgeTrainSettings(PairSettings, ModelSettings, RunSettings):
    """Base of the settings of runs that train a judge."""

    FREE_FIELDS: ClassVar = (
        *RunSettings.FREE_FIELDS,
        *PairSettings.FREE_FIELDS,
        "eval",
        "remat",
        "remat_keeps",
        "export_dtype",
    )
    LENGTH: ClassVar = ("train_steps",)
    BATCHES: ClassVar = {"batch_size": "pairs", "eval.batch": "evaluation"}

    eval_split: str = setting("validation_unique", "Split to measure on.")
    train_steps: int = setting(8000, "Number of batches of the whole run.", at_least=1, at_most=MAX_COUNT)
    flip: bool = setting(False, "Mirror both images of half of the pairs; not possible with cache_latents.")
    export_dtype: str = setting(
        "float32", "Dtype of the weights of the exported judge.", choices=("float32", "float16")
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    log: LogSettings = LogSettings(checkpoint_every=1000, eval_every=1000)
    eval: AccuracySettings = AccuracySettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.optimizer.check_warmup(self.train_steps)
        expected = "False, because the cache of config field cache_latents has no latents of mirrored images"
        self.require(not (self.flip and self.cache_latents), "flip", expected)
