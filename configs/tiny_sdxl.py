"""SPO on a tiny SDXL pipeline with random weights: the published recipe's every part, in seconds.

python -m spo_jax.build_toy.tiny_sdxl --out=build/tiny_sdxl
python -m spo_jax.train --config=configs/tiny_sdxl.py --out=runs/tiny_sdxl

Two CPU cores, about two minutes, nearly all of it compiling. The pipeline has learnt nothing, so its pictures are noise
before and after: this shows that a machine can run SDXL, not what SPO does. `configs/tiny.py` shows that.
"""

from spo_jax.core.config import to_config
from spo_jax.methods.spo.settings import TrainSettings


def get_config():
    """Fields that differ from `TrainSettings`' defaults, which are the published ones of SD 1.5."""
    config = to_config(TrainSettings())
    config.model = "build/tiny_sdxl"  # --config.model=FOLDER
    config.prompts = "embedded:train"
    config.prompts_per_batch = 8
    config.max_batches = 4

    config.spm.model = "embedded"

    config.spo.num_candidates = 2
    config.spo.num_inner_step = 3
    config.spo.branch_at_last_step = False
    config.spo.threshold = 0.0  # or there would be no pairs: the preference model has never seen such pictures
    config.spo.decode_chunk = 16
    config.spo.train_batch_size = 16
    config.spo.train_chunk = 16
    config.spo.gradient_accumulation_steps = 2
    config.spo.learning_rate = 1e-4
    config.lora.rank = 4

    config.log.sample_every = 2
    config.log.checkpoint_every = 2
    config.log.sample_pictures = 8

    config.eval.prompts = "embedded:held_out"
    config.eval.reward = "spm"
    config.eval.pictures = 8
    config.eval.batch = 8
    return config.lock()
