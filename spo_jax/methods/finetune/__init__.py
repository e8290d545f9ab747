"""Plain fine-tuning of the LoRA on a folder of images with captions."""

from spo_jax.methods.finetune.method import read_data as read_data
from spo_jax.methods.finetune.method import setup as setup
from spo_jax.methods.finetune.settings import FinetuneSettings as Settings  # noqa: F401
