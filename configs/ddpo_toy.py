"""DDPO on the pipeline shipped in the package, judged by the toy preference model at finished images.

python -m spo_jax.train --config=configs/ddpo_toy.py --out=runs/ddpo_toy

It takes about two minutes on two CPU cores, in which it draws few images and learns next to nothing: with the
preference model of people's labels and the best of nine settings, 15 of the 23 batches moved the aesthetic of held-out
images by 0.03 ± 0.01 of the base's standard deviation (three seeds; `python -m benchmarks.compare_methods`,
docs/results.md). With --config.ddpo.reward=toy --config.eval.guard=off it learns from the toy's truth, which is an
upper bound and no method.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep DDPO's defaults, which are those published for SD 1.5."""
    config = default_config("ddpo")
    config.model = "toy"
    config.prompts = "toy:train"
    config.prompts_per_batch = 8
    config.num_epochs = 4  # 23 batches of the 46 prompts

    config.spm.model = "toy"

    config.ddpo.reward = "spm"
    config.ddpo.num_steps = 20
    config.ddpo.samples_per_prompt = 4
    config.ddpo.timestep_fraction = 0.5  # half of the work of an update, for more rollouts in the same time
    config.ddpo.train_batch_size = 16
    config.ddpo.rollout_chunk = 32
    config.ddpo.train_chunk = 16
    config.ddpo.decode_chunk = 32
    config.optimizer.learning_rate = 1e-3
    config.lora.rank = 8

    config.log.eval_every = 5
    config.log.checkpoint_every = 10

    config.eval.grid_images = 16
    config.eval.prompts = "toy:held_out"
    config.eval.rewards = "toy"
    config.eval.images = 100
    config.eval.guard = "warn"
    config.eval.guard_rewards = "toy"
    return config.lock()
