r"""DDPO on Stable Diffusion 1.5 with LAION's aesthetic score, at published settings (arXiv 2305.13301 and its code).

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts --source=\
https://github.com/kvablack/ddpo-pytorch/raw/main/ddpo_pytorch/assets/simple_animals.txt
python -m spo_jax.train --config=configs/ddpo_sd15.py --out=runs/ddpo_sd15

For one GPU of 80 GB or more of them; hours are not measured, and it was not run here. The published run draws 256
images a batch, one for each of 256 prompts that are drawn from the list of animals with repetition; here a batch has
32 of the animals and 8 images of each. A batch makes 2 optimizer steps of 128 images. The original was published for
SD 1.4 and 1.5 and for this reward alone, or for the size of a compressed file; there is no recipe for SDXL.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("ddpo")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"  # for frozen weights; watch the curve first_ratio_error, and take float32 if it is not ~0
    config.remat = True
    config.prompts = "data/prompts/simple_animals.json"  # 45 common animals
    config.prompts_per_batch = 32
    config.num_epochs = 72  # of the 45 animals: 101 batches

    config.lora.rank = 4
    config.lora.alpha = 0.0  # 0 means alpha = rank, so the scale is 1

    config.ddpo.reward = "aesthetic"
    config.ddpo.num_steps = 50
    config.ddpo.eta = 1.0
    config.ddpo.guidance_scale = 5.0
    config.ddpo.samples_per_prompt = 8
    config.ddpo.timestep_fraction = 1.0
    config.ddpo.passes = 1
    config.ddpo.train_batch_size = 128
    config.ddpo.clip_range = 1e-4
    config.ddpo.adv_clip_max = 5.0
    config.ddpo.buffer_size = 32
    config.ddpo.min_count = 16
    config.ddpo.rollout_chunk = 8
    config.ddpo.train_chunk = 8
    config.optimizer.learning_rate = 3e-4
    config.optimizer.adam_beta1 = 0.9
    config.optimizer.adam_beta2 = 0.999
    config.optimizer.adam_epsilon = 1e-8
    config.optimizer.weight_decay = 1e-4
    config.optimizer.max_grad_norm = 1.0

    config.eval.prompts = "data/prompts/simple_animals.json"
    config.eval.images = 45
    config.eval.batch = 9
    config.eval.rewards = "aesthetic"
    return config.lock()
