r"""A step-aware preference model for the pipeline shipped in the package, from random weights.

python -m spo_jax.prepare --dataset=toy --data-dir=data/toy
python -m spo_jax.train --config=configs/spm_toy.py --out=runs/spm_toy

The first command takes 7 minutes on two CPU cores, and the second takes 72. JAX_NUM_CPU_DEVICES=2 keeps both cores busy
and makes the second one 1.4 times as fast. SPO uses the result with --config.spm.model=runs/spm_toy/spm.

The times are from a world with fewer flaws; on today's the run has not been made, so which accuracies it prints is not
known. Another hour of training from its result, with uniform timesteps, is what `spo_jax.build_toy.build` adds:

python -m spo_jax.train --config=configs/spm_toy.py --config.init=runs/spm_toy/spm --config.init_random=False \
  --config.seed=1 --config.timestep_power=1.0 --config.train_steps=3400 --config.optimizer.warmup_steps=200 \
  --out=runs/spm_toy_more

docs/toy.md says how the shipped model was made, in ten minutes from an older one, and has its accuracies:

python -m spo_jax.evaluate_spm --config=configs/spm_toy.py --spm=toy --out=runs/shipped
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep the method's defaults, which are those published for SD 1.5."""
    config = default_config("spm")
    config.model = "toy"
    config.init = "toy"  # only its config is used: two small towers, images of 32 px
    config.init_random = True
    config.data_dir = "data/toy"
    config.flip = True  # the toy world's preferences do not depend on left and right

    config.batch_size = 32  # smaller batches make more steps of the pairs that two cores process in an hour
    config.chunk = 32
    config.train_steps = 3000
    config.optimizer.warmup_steps = 150
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.adam_beta2 = 0.99  # averages over hundreds of steps only, because there are few
    config.timestep_power = 2.0  # favours low timesteps, where the toy world's preferences are visible
    config.export_dtype = "float16"

    config.log.checkpoint_every = 200
    config.log.eval_every = 1000
    config.eval.pairs = 500  # each evaluation takes one or two minutes; --config.eval.pairs=0 uses all pairs
    config.eval.batch = 40
    return config.lock()
