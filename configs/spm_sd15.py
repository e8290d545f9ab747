r"""The step-aware preference model of SD 1.5, the published recipe (arXiv 2406.04314, appendix, and its code).

python -m spo_jax.prepare --dataset=pick_a_pic --source=yuvalkirstain/pickapic_v1 --data-dir=data/pickapic_v1
python -m spo_jax.train --config=configs/spm_sd15.py --out=runs/spm_sd15 --config.data_dir=data/pickapic_v1

The published run took 32 A100-hours on 4 × A100 80 GB. It starts from the plain PickScore, which agrees with the human
labels of 70.5 % of Pick-a-Pic's test pairs (arXiv 2305.01569). Accuracy at t = 0 should stay about there, and it should
be above the plain model's at every later timestep. The numbers below are for all devices together: the published 16
pairs per device, times 4.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("spm")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.dtype = "bfloat16"  # for frozen weights and activations; the reference's frozen part uses float16
    config.remat = True
    config.init = "yuvalkirstain/PickScore_v1"  # --config.init=PATH_OR_ID
    config.tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    config.data_dir = "data/pickapic_v1"
    config.train_split = "train"
    config.eval_split = "validation_unique"
    config.resolution = 512
    config.posterior = "sample"
    config.flip = False

    config.batch_size = 64
    config.chunk = 8
    config.train_steps = 8000
    config.optimizer.learning_rate = 3e-6
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.3
    config.optimizer.adam_beta1 = 0.9
    config.optimizer.adam_beta2 = 0.999
    config.optimizer.adam_epsilon = 1e-8
    config.optimizer.max_grad_norm = 1.0
    config.guidance_scale = 5.0
    config.timestep_power = 1.0
    config.mesh.data = 1
    config.mesh.fsdp = -1  # weights, gradients and moments take 16 GB, which all devices share

    config.log.checkpoint_every = 1000
    config.log.eval_every = 1000
    config.eval.timesteps = (0, 251, 501, 701, 951)
    return config.lock()
