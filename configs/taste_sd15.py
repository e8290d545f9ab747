r"""SPO on SD 1.5 with a preference model of your own taste, from `configs/taste_spm_sd15.py`. It has not been run.

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts_500 --limit=500 --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
python -m spo_jax.train --config=configs/taste_sd15.py --out=runs/taste_sd15

Prompts of your own are a text file with one in each line: --config.prompts=FILE. These are the settings of
`configs/sd15_overnight.py`, which has the hours and the memory on GPUs of 24 GB, with the other judge. No run with them
has been made.
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

    config.spm.model = "runs/taste_spm_sd15/spm"  # --config.spm.model=FOLDER

    config.spo.decoder = "madebyollin/taesd"  # "vae" is the exact one
    config.spo.train_batch_size = 10
    config.spo.train_chunk = 10
    config.optimizer.gradient_accumulation_steps = 4

    config.log.checkpoint_every = 10
    config.log.eval_every = 50

    config.eval.prompts = "data/prompts/validation_unique.json"  # 500 others of Pick-a-Pic v1, as in the paper
    config.eval.images = 32
    config.eval.batch = 4
    config.eval.rewards = "spm"  # your own judge: the report says whether the images moved its way
    return config.lock()
