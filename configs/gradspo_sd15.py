r"""GradSPO on Stable Diffusion 1.5, with the settings of its code (Tee et al., NeurIPS 2025). It has not been run here.

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/gradspo_sd15.py --out=runs/gradspo_sd15

These are the settings of `configs/sd15.py` with another objective: noises of winner and loser that differ in sign only,
a running mean of the adapter that draws the rollouts, and every pair of the last step. The published run used 4 GPUs;
its hours and scores were not found. A pair is trained on with three evaluations of the network, where SPO needs two.
The numbers below are for all devices together: the published 10 prompts and 10 pairs per device, times 4.
"""

from spo_jax import load_config


def get_config():
    """Returns the settings of `configs/sd15.py` with another objective."""
    config = load_config("sd15")
    config.spo.objective = "gradspo"
    config.spo.grad_scale = 0.5
    config.spo.ema_decay = 0.9
    config.spo.accept_last_step = True
    return config.lock()
