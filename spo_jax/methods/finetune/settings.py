"""Settings of plain fine-tuning."""

import dataclasses
from typing import ClassVar

from spo_jax.core.config import MAX_BATCH, MAX_COUNT, setting
from spo_jax.methods.common.settings import AdapterSettings, OptimizerSettings


@dataclasses.dataclass(frozen=True)
class FinetuneSettings(AdapterSettings):
    """All settings of a run of plain fine-tuning."""

    FREE_FIELDS: ClassVar = (*AdapterSettings.FREE_FIELDS, "chunk")
    LENGTH: ClassVar = ("train_steps",)
    BATCHES: ClassVar = {"batch_size": "images"}

    method: str = setting("finetune", "Training method: finetune trains the adapter on images with captions.")
    images: str = setting("data/images", "Folder of images with captions (metadata.jsonl, or a text file beside each).")
    train_steps: int = setting(1000, "Number of batches of the whole run.", at_least=1, at_most=MAX_COUNT)
    batch_size: int = setting(
        8, "Number of images in a batch, over all devices.", at_least=1, at_most=MAX_BATCH, memory="lower"
    )
    chunk: int = setting(
        8,
        "Number of images that a device has in memory at a time; changes results only by rounding.",
        at_least=1,
        at_most=MAX_BATCH,
        memory="lower",
    )
    caption_dropout: float = setting(
        0.1, "Share of images that are trained without their caption, for guidance.", at_least=0, at_most=1
    )
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.optimizer.check_warmup(self.train_steps)

    @property
    def data(self) -> str:
        """The training data in words, for messages."""
        return f"the images in {self.images}"
