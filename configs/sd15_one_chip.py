r"""SPO on Stable Diffusion 1.5 with one TPU v5e chip (16 GiB), as Colab lends it.

python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts --source=\
https://github.com/RockeyCoss/SPO/raw/HEAD/spo_training_and_inference/assets/prompts/4k_training_prompts.json
python -m spo_jax.prepare --dataset=prompts --data-dir=data/prompts \
  --source=yuvalkirstain/pickapic_v1_no_images --splits=validation_unique
export JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-0.5     # compiles in a fifth of the time; programs may be slower
export JAX_COMPILATION_CACHE_DIR=runs/sd15/xla    # on a disk that stays, so that only the first start compiles
python -m spo_jax.train --config=configs/sd15_one_chip.py --out=runs/sd15 --auto-resume

The machine may be taken away: the last command again continues from the latest checkpoint. It can be asked for less
with --config.max_batches=50 (500 prompts) and, also afterwards, for more with --config.num_epochs=10 (the published
length). By the cost model (launch/README.md, 20 to 40 % of the chip's peak, all pairs valid) a batch takes 45 to 90 s,
500 prompts 0.6 to 1.3 hours, this epoch of 4,000 prompts 5 to 10 hours, and the published ten 50 to 100 hours. With the
distilled decoder (--config.spo.decoder=madebyollin/taesd) it is 64 % of that. Compiled for the chip, a rollout takes
9.6 GiB, and an update that keeps all products about 10 (docs/machines.md). By the compiler's own estimates, with half
of the pairs valid, a batch takes 37 s, 500 prompts twice 1.0 hours and the published length 41. No run with these
settings has been made, so no score is promised.

The recipe is the published one but for this: a rollout has 10 prompts instead of 40, and the same 40 pairs of an
optimizer step are four training batches of 10. The policy is therefore updated after every 10 prompts, and rollouts
are fresher than in the published run.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep SPO's defaults, which are those published for SD 1.5."""
    config = default_config("spo")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"  # for frozen weights; the reference uses float16
    config.remat = True
    config.remat_keeps = "products"  # 5 pairs at a time leave room for them
    config.prompts = "data/prompts/4k_training_prompts.json"  # 4,000 prompts of Pick-a-Pic v1
    config.prompts_per_batch = 10
    config.num_epochs = 1

    published = "SPO-Diffusion-Models/Step-Aware_Preference_Models/sd-v1-5_step-aware_preference_model.bin"
    config.spm.model = published  # --config.spm.model=FILE_OR_FOLDER_OR_ID
    config.spm.tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    config.spo.train_batch_size = 10
    config.spo.train_chunk = 5  # pairs at a time; 10 fit only with remat_keeps="inputs"
    config.optimizer.gradient_accumulation_steps = 4

    config.log.checkpoint_every = 5  # 4 to 8 minutes by the cost model; a checkpoint is 13 MB
    config.log.eval_every = 50

    config.eval.prompts = "data/prompts/validation_unique.json"  # 500 others of Pick-a-Pic v1, as in the paper
    config.eval.images = 32
    config.eval.batch = 4
    config.eval.rewards = "spm"
    return config.lock()
