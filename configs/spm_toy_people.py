r"""A step-aware preference model for the toy, from the preferences of simulated people.

python -m spo_jax.build_toy.people --out=data/toy_people
python -m spo_jax.train --config=configs/spm_toy_people.py --out=runs/spm_toy_people

Both take about 20 minutes on two CPU cores with JAX_NUM_CPU_DEVICES=2.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep the method's defaults, which are those published for SD 1.5."""
    config = default_config("spm")
    config.model = "toy"
    config.init = "toy"  # only its config is used: two small towers, images of 32 px
    config.init_random = True
    config.data_dir = "data/toy_people/people"
    config.flip = True  # nobody cares about left and right: a mirrored shape is as centred and as upright

    config.batch_size = 32
    config.chunk = 32
    config.train_steps = 1200
    config.optimizer.warmup_steps = 60
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.adam_beta2 = 0.99  # averages over hundreds of steps only, because there are few
    config.timestep_power = 1.5
    config.export_dtype = "float16"

    config.log.checkpoint_every = 200
    config.log.eval_every = 1200
    config.eval.pairs = 400
    config.eval.batch = 40
    return config.lock()
