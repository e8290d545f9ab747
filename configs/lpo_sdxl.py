r"""LPO on Stable Diffusion XL, with the settings of its code (arXiv 2502.01051). It has not been run here.

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/lpo_sdxl.py --out=runs/lpo_sdxl

These are the settings of `configs/lpo_sd15.py` with a LoRA of rank 64, a lower learning rate, a higher threshold and
smaller batches. Unlike SPO's recipe for SDXL there are no inner steps. The published run took 92 A100-hours on 4 GPUs,
where SPO took 234 by the same authors' count. The numbers below are for all devices together: the published 4 prompts
and 4 pairs per device, times 4.
"""

from spo_jax import load_config


def get_config():
    """Returns the settings of `configs/lpo_sd15.py` with another model and judge, thresholds and batches."""
    config = load_config("lpo_sd15")
    config.model = "stabilityai/stable-diffusion-xl-base-1.0"  # --config.model=PATH_OR_ID
    config.vae = "madebyollin/sdxl-vae-fp16-fix"  # the model's own decodes only in float32: twice memory and time
    config.prompts_per_batch = 16

    config.lora.rank = 64

    config.spo.reward = "lrm:casiatao/LRM/lrm_sdxl"  # --config.spo.reward=lrm:FOLDER_OR_ID
    config.spo.threshold = 0.45
    config.spo.threshold_high = 0.6
    config.spo.decode_chunk = 4  # noisy latents that a device judges at a time
    config.spo.train_batch_size = 16
    config.spo.train_chunk = 4
    config.optimizer.learning_rate = 1e-5

    config.eval.batch = 4
    return config.lock()
