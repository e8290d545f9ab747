"""D3PO on the pipeline shipped in the package, judged by the toy preference model at finished images.

python -m spo_jax.train --config=configs/d3po_toy.py --out=runs/d3po_toy

It takes less than two minutes on two CPU cores. With the preference model of people's labels and the best of nine
settings, 15 of the 17 batches moved the aesthetic of held-out images by 0.16 ± 0.11 of the base's standard deviation,
one of three seeds downwards (`python -m benchmarks.compare_methods`, docs/results.md).
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep D3PO's defaults, which are those published for SD 1.5."""
    config = default_config("d3po")
    config.model = "toy"
    config.prompts = "toy:train"
    config.prompts_per_batch = 8
    config.num_epochs = 3  # 17 batches of the 46 prompts

    config.spm.model = "toy"

    config.d3po.reward = "spm"
    config.d3po.num_steps = 20
    config.d3po.train_batch_size = 8
    config.d3po.rollout_chunk = 16
    config.d3po.train_chunk = 8
    config.d3po.decode_chunk = 16
    config.optimizer.learning_rate = 3e-4
    config.lora.rank = 8

    config.log.eval_every = 5
    config.log.checkpoint_every = 5

    config.eval.grid_images = 16
    config.eval.prompts = "toy:held_out"
    config.eval.rewards = "toy"
    config.eval.images = 100
    config.eval.guard = "warn"
    config.eval.guard_rewards = "toy"
    return config.lock()
