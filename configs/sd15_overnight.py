r"""SPO on Stable Diffusion 1.5 overnight: 500 prompts on one GPU of 24 GB (RTX 3090, RTX 4090, L4).

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts_500 --limit=500 --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
export XLA_CLIENT_MEM_FRACTION=0.92               # of the GPU's memory; jax takes 75 % unless it is told otherwise
python -m spo_jax.train --config=configs/sd15_overnight.py --out=runs/overnight --auto-resume

Prompts of your own are a text file with one in each line: --config.prompts=FILE. By the cost model (launch/README.md,
20 to 40 % of the peak, all pairs valid) the 4 epochs take 1.9 to 3.8 hours on an RTX 4090 (165 TFLOP/s), 4.4 to 8.9
hours on an RTX 3090 (71 TFLOP/s) and 2.6 to 5.2 hours on an L4 (121 TFLOP/s, at its full clock). Memory is 9.4 GiB for
a rollout and 13.3 GiB for an update, by the formula of docs/machines.md; nothing was run on a GPU, so no score is
promised.

LoRA, optimizer and objective are the published ones. These things differ: 2,000 rollouts instead of 40,000, of 500
prompts; 10 prompts and four training batches of 10 instead of 40 and one of 40; and the images that are judged come
from a distilled decoder, which saves 36 % of the work.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep SPO's defaults, which are those published for SD 1.5."""
    config = default_config("spo")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"  # for frozen weights; the reference uses float16
    config.remat = True
    config.prompts = "data/prompts_500/4k_training_prompts.json"  # the first 500 of them
    config.prompts_per_batch = 10
    config.num_epochs = 4

    published = "SPO-Diffusion-Models/Step-Aware_Preference_Models/sd-v1-5_step-aware_preference_model.bin"
    config.spm.model = published  # --config.spm.model=FILE_OR_FOLDER_OR_ID
    config.spm.tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    config.spo.decoder = "madebyollin/taesd"  # "vae" is the exact one
    config.spo.train_batch_size = 10
    config.spo.train_chunk = 10
    config.optimizer.gradient_accumulation_steps = 4

    config.log.checkpoint_every = 10
    config.log.eval_every = 50

    config.eval.prompts = "data/prompts/validation_unique.json"  # 500 others of Pick-a-Pic v1, as in the paper
    config.eval.images = 32
    config.eval.batch = 4
    config.eval.rewards = "spm"
    return config.lock()
