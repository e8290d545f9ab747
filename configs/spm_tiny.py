r"""A step-aware preference model for the pipeline shipped in the package, from random weights.

python -m spo_jax.prepare --dataset=scenes --data-dir=data/scenes
python -m spo_jax.train_spm --config=configs/spm_tiny.py --out=runs/spm_tiny

Two CPU cores, 7 and 72 minutes (JAX_NUM_CPU_DEVICES=2 keeps both busy: 1.4 times as many steps a second). SPO takes it
with --config.spm.model=runs/spm_tiny/spm. It must print accuracies of about 0.86, 0.79, 0.64, 0.58 and 0.51 at t = 0,
251, 501, 701 and 951 (± 0.02): as good as the shipped model at the low ones, and worse above. Another hour or so, from
there on and with all timesteps alike, makes it as good everywhere, 0.85, 0.80, 0.69, 0.63 and 0.59:

python -m spo_jax.train_spm --config=configs/spm_tiny.py --config.init=runs/spm_tiny/spm --config.init_random=False \
  --config.seed=1 --config.timestep_power=1.0 --config.num_steps=3400 --config.warmup_steps=200 --out=runs/spm_further

The shipped one on the same 500 pairs has 0.84, 0.77, 0.70, 0.61 and 0.57:

python -m spo_jax.evaluate_spm --config=configs/spm_tiny.py --spm=embedded --out=runs/shipped
"""

from spo_jax.core.config import to_config
from spo_jax.methods.spm.settings import SPMTrainSettings


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
