"""LPO on the pipeline shipped in the package: `configs/toy.py` with a judge of noisy latents.

python -m spo_jax.train --config=configs/lpo_toy.py --out=runs/lpo_toy

The judge is the one that the package ships, which `configs/lrm_toy.py` trains. It sees noisy latents, and nothing is
decoded. The run must print an aesthetic of about 0.37 -> 0.49; with --config.eval.guard=off it took nine minutes on a
fraction of two CPU cores that had much other work to do. Diverting from step 5 on, t = 701, gave 0.47 (docs/toy.md).
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep SPO's defaults, which are those published for SD 1.5."""
    config = default_config("spo")
    config.model = "toy"
    config.prompts = "toy:train"
    config.prompts_per_batch = 8
    config.num_epochs = 5  # 28 batches of the 46 prompts

    config.spo.reward = "lrm:toy_people"
    config.spo.judged = "noisy"
    config.spo.divert_start_step = 11  # t = 401: at higher timesteps this judge, too, knows too little
    config.spo.threshold_rule = "sigma"
    config.spo.threshold = 0.1
    config.spo.threshold_high = 0.15
    config.spo.decode_chunk = 128  # noisy latents that a device judges at a time
    config.spo.train_batch_size = 16
    config.spo.train_chunk = 4  # batches are rarely full, and empty chunks are not computed
    config.optimizer.learning_rate = 3e-4  # for a small model and few steps; the published 6e-5 is for thousands
    config.lora.rank = 8

    config.log.eval_every = 10
    config.log.checkpoint_every = 10

    config.eval.grid_images = 16
    config.eval.prompts = "toy:held_out"
    config.eval.rewards = "toy"
    config.eval.images = 100
    config.eval.guard = "warn"  # "stop" would end a run whose judge is hacked or that diverges, and export its best
    config.eval.guard_rewards = "toy"
    return config.lock()
