"""The embedded step-aware preference model: two small towers, trained as a user trains one.

Pairs of the world of scenes, labelled by the ground-truth aesthetic, go through the same builder, files and loader as
anybody's: this is ``spo_jax.prepare`` and ``spo_jax.train`` with ``configs/spm_toy.py``, from a config alone.
"""

import dataclasses
from pathlib import Path

from spo_jax.core.files import write_json
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from spo_jax.prepare import prepare
from spo_jax.rewards.common.preference_model import config_fields
from spo_jax.run.folder import Resume
from spo_jax.toy import world
from spo_jax.toy.tokenizer import write_tokenizer
from spo_jax.train import train

PAIRS, HELD_OUT_PAIRS = 100_000, 2_000  # as spo_jax.prepare draws them
# The second run starts from the first one's model, timesteps now uniform: high ones, where the world's preferences can
# hardly be seen, take longest to learn.
FURTHER = {"init_random": False, "seed": 1, "timestep_power": 1.0, "train_steps": 3400}
FURTHER_WARMUP = 200


def clip_config(vocab_size: int, length: int, end_token: int) -> CLIPConfig:
    """Pictures are 32 px and patches 4."""
    text = CLIPTextConfig(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=128, projection_dim=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=length, hidden_act="gelu", eos_token_id=end_token,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=192, projection_dim=64, num_hidden_layers=3, num_attention_heads=4,
        image_size=world.SIZE, patch_size=4, hidden_act="gelu",
    )  # fmt: skip
    return CLIPConfig(text, vision, projection_dim=64, time_conditioned=True)


def train_preference_model(settings: SPMTrainSettings, config: CLIPConfig, work: Path) -> Path:
    """Prepares pairs, trains on them from random weights and then `FURTHER`; goes on with what ``work`` holds already.

    Args:
      settings: of the first run; where it starts and what it reads is filled in.

    Returns:
      The folder of the trained model.
    """
    prepare("toy", work / "toy", pairs=PAIRS, held_out_pairs=HELD_OUT_PAIRS, seed=0)
    start = work / "spm_start"
    write_json(start / "config.json", config_fields(config))
    write_tokenizer(start / "tokenizer")
    settings = dataclasses.replace(
        settings, init=str(start), init_random=True, data_dir=str(work / "toy"), export_dtype="float16"
    )
    train(settings, work / "spm", Resume(if_there=True))
    optimizer = dataclasses.replace(settings.optimizer, warmup_steps=FURTHER_WARMUP)
    further = dataclasses.replace(settings, init=str(work / "spm" / "spm"), optimizer=optimizer, **FURTHER)
    train(further, work / "spm_further", Resume(if_there=True))
    return work / "spm_further" / "spm"
