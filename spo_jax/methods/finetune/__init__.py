"""Plain fine-tuning of the LoRA on a folder of images with captions."""

from spo_jax.core.lazy import late
from spo_jax.methods.finetune.checks import check as check
from spo_jax.methods.finetune.data import read_data as read_data
from spo_jax.methods.finetune.rules import RULES as RULES
from spo_jax.methods.finetune.settings import FinetuneSettings as Settings  # noqa: F401

__getattr__, __dir__ = late(__name__, {"setup": "spo_jax.methods.finetune.method"})
