r"""GradSPO on Stable Diffusion XL, with the settings of its code (Tee et al., NeurIPS 2025). It has not been run here.

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/gradspo_sdxl.py --out=runs/gradspo_sdxl

These are the settings of `configs/sdxl.py` with another objective: noises of winner and loser that differ in sign only,
a running mean of the adapter that draws the rollouts, 4 candidates, and no inner steps. The published run used 4 GPUs;
its hours and scores were not found. A pair is trained on with three evaluations of the network, where SPO with inner
steps needs four. The numbers below are for all devices: the published 2 prompts and 1 pair per device, times 4.
"""

from spo_jax import load_config


def get_config():
    """Returns the settings of `configs/sdxl.py` with another objective, pools and batches."""
    config = load_config("sdxl")
    config.spo.objective = "gradspo"
    config.spo.grad_scale = 0.5
    config.spo.ema_decay = 0.9
    config.spo.num_candidates = 4
    config.spo.num_inner_step = 0
    config.spo.train_batch_size = 4
    config.optimizer.gradient_accumulation_steps = 4
    return config.lock()
