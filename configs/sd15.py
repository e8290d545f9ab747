r"""SPO on Stable Diffusion 1.5, the published recipe (arXiv 2406.04314, section 4 and its code).

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/sd15.py --out=runs/sd15

The published run took 48 A100-hours on 4 × A100 80 GB and should reach PickScore 21.43 (base 20.53), HPSv2.1 26.45,
ImageReward 0.171, Aesthetic 5.887 on 500 validation prompts with 20 DDIM steps and guidance 5. The numbers below are
for all devices together: the published 10 prompts and 10 pairs per device, times 4.
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

    config.eval.prompts = "data/prompts/validation_unique.json"  # 500 others of Pick-a-Pic v1, as in the paper
    config.eval.images = 32
    config.eval.batch = 8
    config.eval.rewards = "spm"
    return config.lock()
