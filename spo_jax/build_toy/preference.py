"""Trains the toy step-aware preference model, which has two small towers, in the way that a user trains one.

The pairs of the toy world are labelled by its truth and go through the same builder, files and loader as a user's own:
``spo_jax.prepare`` and ``spo_jax.train`` run with ``configs/spm_toy.py``, from a config without weights.
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

# As many pairs as spo_jax.prepare draws by default.
PAIRS = 100_000
HELD_OUT_PAIRS = 2_000
# The second run starts from the first one's model and has uniform timesteps: high ones, at which the toy world's
# preferences are hardly visible, take longest to learn.
FURTHER = {"init_random": False, "seed": 1, "timestep_power": 1.0, "train_steps": 3400}
FURTHER_WARMUP = 200


def clip_config(vocab_size: int, length: int, end_token: int, time_conditioned: bool = True) -> CLIPConfig:
    """Returns the config of both towers, for images of 32 px and patches of 4 px."""
    text = CLIPTextConfig(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=128, projection_dim=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=length, hidden_act="gelu", eos_token_id=end_token,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=192, projection_dim=64, num_hidden_layers=3, num_attention_heads=4,
        image_size=world.SIZE, patch_size=4, hidden_act="gelu",
    )  # fmt: skip
    return CLIPConfig(text, vision, projection_dim=64, time_conditioned=time_conditioned)


def train_preference_model(settings: SPMTrainSettings, config: CLIPConfig, work: Path) -> Path:
    """Prepares pairs, trains on them from random weights, and trains again as in `FURTHER`.

    Runs that ``work`` already has are continued.

    Args:
      settings: settings of the first run; its model to start from and its data are filled in.
      config: config of the preference model.
      work: folder of the pairs and the runs.

    Returns:
      The folder of the trained model.
    """
    # Prepare the pairs and a model without weights.
    prepare("toy", work / "toy", pairs=PAIRS, held_out_pairs=HELD_OUT_PAIRS, seed=0)
    start = work / "spm_start"
    write_json(start / "config.json", config_fields(config))
    write_tokenizer(start / "tokenizer")
    # Train from random weights.
    settings = dataclasses.replace(
        settings, init=str(start), init_random=True, data_dir=str(work / "toy"), export_dtype="float16"
    )
    train(settings, work / "spm", Resume(if_there=True))
    # Train again from the result.
    optimizer = dataclasses.replace(settings.optimizer, warmup_steps=FURTHER_WARMUP)
    further = dataclasses.replace(settings, init=str(work / "spm" / "spm"), optimizer=optimizer, **FURTHER)
    train(further, work / "spm_further", Resume(if_there=True))
    return work / "spm_further" / "spm"
