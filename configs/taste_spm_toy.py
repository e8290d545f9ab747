r"""The toy's preference model, fine-tuned on a few dozen votes of yours.

python -m spo_jax.prepare --dataset=folder --source=votes/preferences --hold-out=0.2 --data-dir=data/votes
python -m spo_jax.train --config=configs/taste_spm_toy.py --out=runs/taste_spm
python -m spo_jax.train --config=configs/taste_toy.py --out=runs/taste

SPO with the result is `configs/taste_toy.py`. docs/your_taste.md has what 40, 80 and 160 votes of a simulated voter
were enough for, and how long each step took.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep the method's defaults, which are those published for SD 1.5."""
    config = default_config("spm")
    config.model = "toy"
    config.init = "toy"
    config.data_dir = "data/votes"
    config.train_split = "train"
    config.eval_split = "validation"
    config.flip = True  # doubles the images, for tastes that do not depend on left and right

    # Every step noises the pairs anew, at timesteps of its own: the few pairs are never seen alike twice.
    config.batch_size = 16
    config.chunk = 16
    config.train_steps = 80
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 8
    config.optimizer.weight_decay = 0.05
    config.optimizer.adam_beta2 = 0.99  # averages over hundreds of steps only, because there are few
    config.timestep_power = 1.0
    config.export_dtype = "float16"

    config.log.checkpoint_every = 1000
    config.log.eval_every = 1000
    config.eval.timesteps = (0, 201, 401, 601)
    config.eval.batch = 60
    return config.lock()
