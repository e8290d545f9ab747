r"""A step-aware preference model for the pipeline shipped in the package, from random weights.

python -m spo_jax.prepare --dataset=scenes --data-dir=data/scenes
python -m spo_jax.train_spm --config=configs/spm_tiny.py --out=runs/spm_tiny

Two CPU cores, 7 and 72 minutes. SPO takes it with --config.spm.model=runs/spm_tiny/spm. It must print accuracies of
about 0.86, 0.79, 0.64, 0.58 and 0.51 at t = 0, 251, 501, 701 and 951 (± 0.02). The shipped model, which saw three times
as many pairs, has 0.84, 0.77, 0.70, 0.61 and 0.57 on the same ones:

python -m spo_jax.evaluate_spm --config=configs/spm_tiny.py --spm=embedded --out=runs/shipped
"""

from spo_jax.core.settings import to_config
from spo_jax.spm.settings import SPMTrainSettings


def get_config():
    """Fields that differ from `SPMTrainSettings`' defaults, which are the published ones of SD 1.5."""
    config = to_config(SPMTrainSettings())
    config.model = "embedded"
    config.init = "embedded"  # its config alone: two small towers, pictures of 32 px
    config.init_random = True
    config.data_dir = "data/scenes"
    config.flip = True  # the world's preferences know no left and right

    config.batch_size = 32  # of the pairs that two cores can show in an hour, more and smaller steps
    config.chunk = 32
    config.num_steps = 3000
    config.warmup_steps = 150
    config.learning_rate = 1e-3
    config.weight_decay = 0.05
    config.adam_beta2 = 0.99  # a memory of hundreds of steps, of so few
    config.timestep_power = 2.0  # more of the low ones, where the world's preferences can be seen at all
    config.export_dtype = "float16"

    config.log.checkpoint_every = 200
    config.log.eval_every = 1000
    config.eval.pairs = 500  # a minute or two each time; all of them with --config.eval.pairs=0
    config.eval.batch = 40
    return config.lock()
