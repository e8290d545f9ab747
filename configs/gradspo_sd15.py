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

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("spo")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"  # for frozen weights; the reference uses float16
    config.remat = True
    config.prompts = "data/prompts/4k_training_prompts.json"  # 4,000 prompts of Pick-a-Pic v1
    config.prompts_per_batch = 40
    config.num_epochs = 10

    published = "SPO-Diffusion-Models/Step-Aware_Preference_Models/sd-v1-5_step-aware_preference_model.bin"
    config.spm.model = published  # --config.spm.model=FILE_OR_FOLDER_OR_ID
    config.spm.tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    config.lora.rank = 4
    config.lora.alpha = 0.0  # 0 means alpha = rank, so the scale is 1

    config.spo.objective = "gradspo"
    config.spo.grad_scale = 0.5
    config.spo.ema_decay = 0.9
    config.spo.accept_last_step = True
    config.spo.num_steps = 20
    config.spo.eta = 1.0
    config.spo.guidance_scale = 5.0
    config.spo.divert_start_step = 4
    config.spo.num_candidates = 4
    config.spo.num_inner_step = 0
    config.spo.branch_at_last_step = True
    config.spo.threshold = 0.3
    config.spo.beta = 10.0
    config.spo.eps = 0.1
    config.spo.train_batch_size = 40
    config.spo.train_chunk = 10
    config.optimizer.gradient_accumulation_steps = 1
    config.optimizer.learning_rate = 6e-5
    config.optimizer.adam_beta1 = 0.9
    config.optimizer.adam_beta2 = 0.999
    config.optimizer.adam_epsilon = 1e-8
    config.optimizer.weight_decay = 1e-4
    config.optimizer.max_grad_norm = 1.0  # the reference never clips; see docs/parity.md

    config.eval.prompts = "data/prompts/validation_unique.json"  # 500 others of Pick-a-Pic v1, as in SPO's paper
    config.eval.images = 32
    config.eval.batch = 8
    config.eval.rewards = "spm"
    return config.lock()
