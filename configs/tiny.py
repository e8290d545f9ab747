"""SPO on the pipeline shipped in the package: a world of coloured shapes.

python -m spo_jax.train --config=configs/tiny.py --out=runs/tiny

Two CPU cores, about two minutes. It must print an aesthetic of about 0.38 -> 0.49 (see the README).
"""

from spo_jax.core.config import to_config
from spo_jax.methods.spo.settings import TrainSettings


def get_config():
    """Fields that differ from `TrainSettings`' defaults, which are the published ones of SD 1.5."""
    config = to_config(TrainSettings())
    config.model = "embedded"
    config.prompts = "embedded:train"
    config.prompts_per_batch = 8
    config.num_epochs = 5  # 46 prompts: 28 batches; far more, and the policy finds what the small judge gets wrong

    config.spm.model = "embedded"

    config.spo.divert_start_step = 11  # t = 401: above it the preference model knows too little
    config.spo.threshold = 0.3
    config.spo.decode_chunk = 96
    config.spo.train_batch_size = 16
    config.spo.train_chunk = 4  # batches are rarely full, and what is not there is not computed
    config.spo.learning_rate = 3e-4  # a small model and few steps; the published 6e-5 is for thousands of them
    config.lora.rank = 8

    config.log.sample_every = 10
    config.log.checkpoint_every = 10
    config.log.sample_pictures = 16

    config.eval.prompts = "embedded:held_out"
    config.eval.reward = "scenes"
    config.eval.pictures = 100
    return config.lock()
