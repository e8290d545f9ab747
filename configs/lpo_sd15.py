r"""LPO on Stable Diffusion 1.5, with the settings of its code (arXiv 2502.01051). It has not been run here.

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/lpo_sd15.py --out=runs/lpo_sd15

LPO is SPO with a judge that reads the candidates with their noise. Every step branches and is trained on, nothing is
decoded, and the network predicts from one candidate of a pool instead of all of them. The threshold by which pairs are
kept rises with the noise of the step, and β is 50 times SPO's. The published run took 23 A100-hours on 4 GPUs, where
SPO took 80 by the same authors' count, and should reach PickScore 21.69 and ImageReward 0.659 on 500 validation
prompts. The numbers below are for all devices together: the published 5 prompts and 10 pairs per device, times 4.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("spo")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"  # for frozen weights; the reference uses float16
    config.remat = True
    config.prompts = "data/prompts/4k_training_prompts.json"  # 4,000 prompts of Pick-a-Pic v1
    config.prompts_per_batch = 20
    config.num_epochs = 5

    config.lora.rank = 4
    config.lora.alpha = 0.0  # 0 means alpha = rank, so the scale is 1

    config.spo.reward = "lrm:casiatao/LRM/lrm_sd15"  # --config.spo.reward=lrm:FOLDER_OR_ID
    config.spo.judged = "noisy"
    config.spo.num_steps = 20
    config.spo.eta = 1.0
    config.spo.guidance_scale = 5.0  # of the policy; inside of the judge it is 7.5
    config.spo.divert_start_step = 0
    config.spo.num_candidates = 4
    config.spo.num_inner_step = 0
    config.spo.branch_at_last_step = True
    config.spo.threshold_rule = "sigma"
    config.spo.threshold = 0.35
    config.spo.threshold_high = 0.5
    config.spo.decode_chunk = 10  # noisy latents that a device judges at a time
    config.spo.beta = 500.0
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
    config.eval.rewards = "pickscore"  # the judge itself reads no images
    return config.lock()
