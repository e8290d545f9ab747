r"""A step-aware preference model for the toy, from the preferences of simulated people.

python -m spo_jax.build_toy.people --out=data/toy_people
python -m spo_jax.build_toy.clip --out=build/toy_clip
python -m spo_jax.train --config=configs/spm_toy_people.py --out=runs/spm_toy_people

The second command trains the plain CLIP that this one starts from, as the published models start from PickScore. On two
CPU cores that had other work to do they took 10, 10 and 18 minutes; JAX_NUM_CPU_DEVICES=2 helped the last one.

The run must print accuracies of about 0.65, 0.63, 0.61 and 0.57 at t = 0, 251, 501 and 701 (± 0.03), on labels of
people of whom two agree in 0.70; docs/toy_people.md has what the model hears. SPO uses the result with
--config.spm.model=runs/spm_toy_people/spm, and the shipped one, which this run made, with
--config.spm.model=toy_people.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep the method's defaults, which are those published for SD 1.5."""
    config = default_config("spm")
    config.model = "toy"
    config.init = "build/toy_clip"
    config.data_dir = "data/toy_people/people"
    config.flip = True  # nobody looks at left and right: a mirrored shape is as centred and as upright

    config.batch_size = 32
    config.chunk = 16
    config.train_steps = 1800  # 14 times each pair, with noise and timesteps of its own
    config.optimizer.warmup_steps = 60
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.adam_beta2 = 0.99  # averages over hundreds of steps only, because there are few
    config.timestep_power = 1.5  # favours low timesteps, where there is more to see
    config.export_dtype = "float16"

    config.log.checkpoint_every = 100
    config.log.eval_every = 600
    config.eval.timesteps = (0, 251, 501, 701)
    config.eval.pairs = 300
    config.eval.batch = 60
    return config.lock()
