r"""Diffusion-DPO (arXiv 2311.12908) on Stable Diffusion 1.5, as diffusers' example trains a LoRA. It has not been run.

python -m spo_jax.prepare --dataset=pick_a_pic --source=yuvalkirstain/pickapic_v1 --data-dir=data/pickapic_v1
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/diffusion_dpo_sd15.py --out=runs/diffusion_dpo_sd15 \
  --config.data_dir=data/pickapic_v1

Batch, learning rate, rank and steps are those of the example's command for one GPU: rank 8, batches of 16 x 2 pairs,
learning rate 1e-5, 10,000 steps. Its beta_dpo = 2500 has no factor of a half, which makes it the 5000 below. Hours and
memory have not been measured.

The published weights are a full fine-tune, which this package does not do: effective batches of 2,048 pairs for 2,000
steps, a warm-up of 500 and a learning rate of 1e-8 x 2048. With a LoRA these are --config.batch_size=128
--config.optimizer.gradient_accumulation_steps=16 --config.train_steps=32000 --config.optimizer.warmup_steps=500
--config.optimizer.learning_rate=2.048e-5 --config.dpo.beta=5000.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("diffusion_dpo")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"  # for frozen weights; the example uses float16
    config.remat = True

    config.data_dir = "data/pickapic_v1"
    config.train_split = "train"
    config.resolution = 512
    config.posterior = "sample"
    config.batch_size = 32
    config.chunk = 4
    config.train_steps = 10_000
    config.caption_dropout = 0.2  # as in the original code

    config.dpo.objective = "dpo"
    config.dpo.beta = 5000.0  # with the half, as in the paper
    config.lora.rank = 8
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.adam_beta1 = 0.9
    config.optimizer.adam_beta2 = 0.999
    config.optimizer.adam_epsilon = 1e-8
    config.optimizer.weight_decay = 1e-2
    config.optimizer.max_grad_norm = 1.0

    config.log.checkpoint_every = 500
    config.log.eval_every = 1000
    config.eval.prompts = "data/prompts/validation_unique.json"  # 500 prompts of Pick-a-Pic v1
    config.eval.images = 32
    config.eval.batch = 8
    config.eval.rewards = "pickscore"
    return config.lock()
