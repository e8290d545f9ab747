r"""SPO on the toy with a preference model of your own taste, which `configs/taste_spm_toy.py` makes.

python -m spo_jax.train --config=configs/taste_toy.py --out=runs/taste

The preference model is read from runs/taste_spm; --config.spm.model=FOLDER names another one. docs/your_taste.md says
how far this moved the images towards the taste of a simulated voter, and how long it took.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep SPO's defaults, which are those published for SD 1.5."""
    config = default_config("spo")
    config.model = "toy"
    config.prompts = "toy:train"
    config.prompts_per_batch = 8
    config.num_epochs = 2  # 11 batches of the 46 prompts; far more would make the policy exploit the judge's errors

    config.spm.model = "runs/taste_spm/spm"  # --config.spm.model=FOLDER

    config.spo.divert_start_step = 4  # a taste may be about the layout, which is decided early
    config.spo.threshold = 0.3
    config.spo.decode_chunk = 96
    config.spo.train_batch_size = 16
    config.spo.train_chunk = 4  # batches are rarely full, and empty chunks are not computed
    config.optimizer.learning_rate = 3e-4  # for a small model and few steps; the published 6e-5 is for thousands
    config.lora.rank = 8

    config.log.eval_every = 4
    config.log.checkpoint_every = 4

    config.eval.grid_images = 16
    config.eval.prompts = "toy:held_out"
    config.eval.rewards = "toy"
    config.eval.images = 100
    return config.lock()
