r"""SPO on Stable Diffusion 1.5 with one GPU of 24 GB (RTX 3090, RTX 4090, L4): the published recipe.

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
export XLA_CLIENT_MEM_FRACTION=0.92               # of the GPU's memory; jax takes 75 % unless it is told otherwise
python -m spo_jax.train --config=configs/sd15_24gb.py --out=runs/sd15 --auto-resume

By the cost model (launch/README.md, 20 to 40 % of the peak, all pairs valid) the 10 epochs of 4,000 prompts take 60 to
120 hours on an RTX 4090 (165 TFLOP/s) and 139 to 278 hours on an RTX 3090 (71 TFLOP/s); configs/sd15_overnight.py ends
in a night. A rollout takes 13.8 GiB, compiled for a TPU that has 32, and an update 13.4 GiB by the formula of
docs/machines.md; nothing was run on a GPU, so no score is promised.

The recipe is the published one but for this: a rollout has 20 prompts instead of 40, and the same 40 pairs of an
optimizer step are two training batches of 20. The policy is therefore updated after every 20 prompts.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep SPO's defaults, which are those published for SD 1.5."""
    config = default_config("spo")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"  # for frozen weights; the reference uses float16
    config.remat = True
    config.prompts = "data/prompts/4k_training_prompts.json"  # 4,000 prompts of Pick-a-Pic v1
    config.prompts_per_batch = 20
    config.num_epochs = 10

    published = "SPO-Diffusion-Models/Step-Aware_Preference_Models/sd-v1-5_step-aware_preference_model.bin"
    config.spm.model = published  # --config.spm.model=FILE_OR_FOLDER_OR_ID
    config.spm.tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    config.spo.decode_chunk = 4
    config.spo.train_batch_size = 20
    config.spo.train_chunk = 10
    config.optimizer.gradient_accumulation_steps = 2

    config.log.checkpoint_every = 10
    config.log.eval_every = 50

    config.eval.prompts = "data/prompts/validation_unique.json"  # 500 others of Pick-a-Pic v1, as in the paper
    config.eval.images = 32
    config.eval.batch = 4
    config.eval.rewards = "spm"
    return config.lock()
