"""A latent reward model for the toy, from the preferences of simulated people.

python -m spo_jax.build_toy.people --out=data/toy_people
python -m spo_jax.train --config=configs/lrm_toy.py --out=runs/lrm_toy

It starts from the first half of the toy's own UNet and from its text encoder, as published, and learns from the pairs
from which the preference model `toy_people` learned. The second command took 26 minutes on a fraction of two CPU cores
that had much other work to do, 13 of them for compiling and reading.

The run must print accuracies of about 0.62, 0.60, 0.57 and 0.51 at t = 1, 251, 501 and 701 (± 0.03), on labels of
people of whom two agree in 0.70; docs/toy_people.md has what the model hears. LPO uses the result with
--config.spo.reward=lrm:runs/lrm_toy/lrm, and the shipped one, which this run made, with
--config.spo.reward=lrm:toy_people.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep the method's defaults, which are those published for SD 1.5."""
    config = default_config("lrm")
    config.model = "toy"
    config.data_dir = "data/toy_people/people"
    config.flip = True  # nobody looks at left and right: a mirrored shape is as centred and as upright

    config.guidance_scale = 1.0  # without guidance, at half the cost
    config.projection = 64
    config.batch_size = 32
    config.chunk = 32
    config.train_steps = 400  # three times each pair, with noises and timesteps of its own
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 30
    config.optimizer.weight_decay = 0.05
    config.optimizer.adam_beta2 = 0.99  # averages over hundreds of steps only, because there are few
    config.export_dtype = "float16"

    config.log.checkpoint_every = 50
    config.log.eval_every = 200
    config.eval.timesteps = (1, 251, 501, 701)
    config.eval.pairs = 300
    config.eval.batch = 60
    return config.lock()
