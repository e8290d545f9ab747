r"""MaPO (arXiv 2406.06424) on Stable Diffusion XL: preference pairs without a reference model. It has not been run.

python -m spo_jax.prepare --dataset=pick_a_pic --source=yuvalkirstain/pickapic_v1 --data-dir=data/pickapic_v1
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/mapo_sdxl.py --out=runs/mapo_sdxl --config.data_dir=data/pickapic_v1

Rank, beta, learning rate and steps are those of the authors' LoRA script and README: rank 8, beta 0.1, 1e-5, 2,000
steps of 8 x 2 pairs on 8 GPUs, with 8-bit Adam, which is the usual AdamW here. The published weights are a full
fine-tune. There is no recipe for SD 1.5. Hours and memory have not been measured.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("diffusion_dpo")
    config.model = "stabilityai/stable-diffusion-xl-base-1.0"  # --config.model=PATH_OR_ID
    config.vae = "madebyollin/sdxl-vae-fp16-fix"
    config.dtype = "bfloat16"
    config.remat = True

    config.data_dir = "data/pickapic_v1"
    config.train_split = "train"
    config.resolution = 1024
    config.posterior = "sample"
    config.batch_size = 128
    config.chunk = 1
    config.train_steps = 2000
    config.caption_dropout = 0.0

    config.dpo.objective = "mapo"
    config.dpo.beta = 0.1
    config.lora.rank = 8
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 1e-2
    config.optimizer.max_grad_norm = 1.0

    config.log.checkpoint_every = 200
    config.log.eval_every = 500
    config.eval.prompts = "data/prompts/validation_unique.json"  # 500 prompts of Pick-a-Pic v1
    config.eval.images = 32
    config.eval.batch = 4
    config.eval.rewards = "pickscore"
    return config.lock()
