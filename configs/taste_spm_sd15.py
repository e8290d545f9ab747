r"""The published preference model of SD 1.5, fine-tuned on a few dozen votes of yours. It has not been run.

python -m spo_jax.prepare --dataset=folder --source=votes/preferences --hold-out=0.2 --data-dir=data/votes
python -m spo_jax.train --config=configs/taste_spm_sd15.py --out=runs/taste_spm_sd15
python -m spo_jax.train --config=configs/taste_sd15.py --out=runs/taste_sd15

These are the published settings of `configs/spm_sd15.py`, reduced to a few dozen pairs: 100 steps of 16 pairs instead
of 8,000 of 64, from the published preference model instead of PickScore. No run with them has been made. That so short
a fine-tuning hears a taste was measured on the toy alone (docs/your_taste.md). Weights, gradients and moments take 16
GB, which all devices share, so that one device needs more than that. The accuracies that the run prints for your
held-out votes, before and after, say whether it worked; with 50 of them one standard error is 7 percentage points.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that differs from the defaults or from the published recipe."""
    config = default_config("spm")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"  # for frozen weights and activations; the reference's frozen part uses float16
    config.remat = True
    config.init = "SPO-Diffusion-Models/Step-Aware_Preference_Models/sd-v1-5_step-aware_preference_model.bin"
    config.tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    config.data_dir = "data/votes"
    config.train_split = "train"
    config.eval_split = "validation"
    config.resolution = 512
    config.flip = True  # as for the toy; the published recipe has pairs enough without

    config.batch_size = 16
    config.chunk = 4
    config.train_steps = 100
    config.optimizer.learning_rate = 3e-6
    config.optimizer.warmup_steps = 10
    config.optimizer.weight_decay = 0.3
    config.guidance_scale = 5.0
    config.timestep_power = 1.0
    config.mesh.data = 1
    config.mesh.fsdp = -1  # weights, gradients and moments take 16 GB, which all devices share

    config.log.checkpoint_every = 100
    config.log.eval_every = 100
    config.eval.timesteps = (0, 251, 501, 701, 951)
    config.eval.batch = 8
    return config.lock()
