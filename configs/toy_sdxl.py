"""SPO on a toy SDXL pipeline with random weights, with every part of the published recipe.

python -m spo_jax.build_toy.toy_sdxl --out=build/toy_sdxl
python -m spo_jax.train --config=configs/toy_sdxl.py --out=runs/toy_sdxl

This takes about two minutes on two CPU cores, nearly all of it for compiling. The pipeline has learned nothing, so its
images are noise before and after. The run shows that a machine can run SDXL, not what SPO does; `configs/toy.py` shows
that.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep SPO's defaults, which are those published for SD 1.5."""
    config = default_config("spo")
    config.model = "build/toy_sdxl"  # --config.model=FOLDER
    config.prompts = "toy:train"
    config.prompts_per_batch = 8
    config.max_batches = 4

    config.spm.model = "toy"

    config.spo.num_candidates = 2
    config.spo.num_inner_step = 3
    config.spo.branch_at_last_step = False
    config.spo.threshold = 0.0  # keeps pairs although the preference model has never seen such images
    config.spo.decode_chunk = 16
    config.spo.train_batch_size = 16
    config.spo.train_chunk = 16
    config.optimizer.gradient_accumulation_steps = 2
    config.optimizer.learning_rate = 1e-4
    config.lora.rank = 4

    config.log.eval_every = 2
    config.log.checkpoint_every = 2

    config.eval.grid_images = 8
    config.eval.prompts = "toy:held_out"
    config.eval.rewards = "spm"
    config.eval.images = 8
    config.eval.batch = 8
    return config.lock()
