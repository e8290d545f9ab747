r"""D3PO on Stable Diffusion 1.5 with the preference model of SPO, at the published settings (arXiv 2311.13231).

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/d3po_sd15.py --out=runs/d3po_sd15

For one GPU of 24 GB or more; hours are not measured, and it was not run here. The published runs take 400 batches of
20 prompts on each GPU, with people's preferences or the reward that is to be shown; prompts and judge here are those of
configs/sd15.py, so that the two methods can be compared, and the judge sees finished images alone. How many pairs make
an optimizer step was not published; here it is all of a batch.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("d3po")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"
    config.remat = True
    config.prompts = "data/prompts/4k_training_prompts.json"  # 4,000 prompts of Pick-a-Pic v1
    config.prompts_per_batch = 20
    config.num_epochs = 2  # 400 batches

    published = "SPO-Diffusion-Models/Step-Aware_Preference_Models/sd-v1-5_step-aware_preference_model.bin"
    config.spm.model = published  # --config.spm.model=FILE_OR_FOLDER_OR_ID
    config.spm.tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    config.lora.rank = 4
    config.lora.alpha = 0.0  # 0 means alpha = rank, so the scale is 1

    config.d3po.reward = "spm"
    config.d3po.num_steps = 20
    config.d3po.eta = 1.0
    config.d3po.guidance_scale = 5.0
    config.d3po.timestep_fraction = 1.0
    config.d3po.passes = 1
    config.d3po.train_batch_size = 20
    config.d3po.beta = 0.1
    config.d3po.eps = 0.1
    config.d3po.rollout_chunk = 8
    config.d3po.train_chunk = 4
    config.optimizer.learning_rate = 3e-5
    config.optimizer.adam_beta1 = 0.9
    config.optimizer.adam_beta2 = 0.999
    config.optimizer.adam_epsilon = 1e-8
    config.optimizer.weight_decay = 1e-4
    config.optimizer.max_grad_norm = 1.0

    config.eval.prompts = "data/prompts/validation_unique.json"
    config.eval.images = 32
    config.eval.batch = 8
    config.eval.rewards = "spm"
    return config.lock()
