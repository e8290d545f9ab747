r"""SmPO on Stable Diffusion XL: DPO with labels that PickScore smooths, and noise that ReNoise inversion recovers.

python -m spo_jax.prepare --dataset=pick_a_pic --source=yuvalkirstain/pickapic_v1 --data-dir=data/pickapic_v1
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/smpo_sdxl.py --out=runs/smpo_sdxl --config.data_dir=data/pickapic_v1

It has not been run; hours and memory have not been measured. The published run is a full fine-tune; this one trains
a LoRA. Batch (8 x 128 pairs), steps, warm-up, beta, gamma and Adafactor are the published ones, and the learning rate
is 1e-8 times that batch, as the original's scale_lr makes it. For a LoRA that is low: diffusers' example of DPO takes
1e-5 with 16 pairs. The original takes only the first pair's label for a whole batch on a device, which held one pair.
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
    config.batch_size = 128  # times 8 batches in an optimizer step: 1,024 pairs
    config.chunk = 1
    config.train_steps = 1600  # 200 optimizer steps
    config.caption_dropout = 0.2

    config.dpo.objective = "smpo"
    config.dpo.beta = 5000.0
    config.dpo.inversion = "renoise"
    config.dpo.inversion_steps = 10  # as in the code; the paper says 9
    config.dpo.reward = "pickscore"
    config.dpo.gamma = 10.0
    config.dpo.score_min = 11.543526500463486  # of PickScore, which is 100 times the cosine that the original maps
    config.dpo.score_max = 28.201571106910706
    config.lora.rank = 8
    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 1.024e-5
    config.optimizer.warmup_steps = 100
    config.optimizer.gradient_accumulation_steps = 8
    config.optimizer.weight_decay = 1e-2
    config.optimizer.max_grad_norm = 1.0

    config.log.checkpoint_every = 200
    config.log.eval_every = 400
    config.eval.prompts = "data/prompts/validation_unique.json"  # 500 prompts of Pick-a-Pic v1
    config.eval.images = 32
    config.eval.batch = 4
    config.eval.rewards = "pickscore"
    return config.lock()
