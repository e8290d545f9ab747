r"""The step-aware preference model of SDXL, the published recipe (arXiv 2406.04314, appendix, and its code).

python -m spo_jax.prepare --dataset=pick_a_pic --source=yuvalkirstain/pickapic_v1 --data-dir=data/pickapic_v1
python -m spo_jax.train --config=configs/spm_sdxl.py --out=runs/spm_sdxl --config.data_dir=data/pickapic_v1

The published run took 116 A100-hours on 4 × A100 80 GB. PickScore makes the labels, once for both splits, from
the clean images. Accuracy at t = 0 therefore starts near 1, and progress shows at later timesteps. The numbers below
are for all devices together: the published 16 pairs per device, times 4.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("spm")
    config.model = "stabilityai/stable-diffusion-xl-base-1.0"  # --config.model=PATH_OR_ID
    config.vae = "madebyollin/sdxl-vae-fp16-fix"  # as published; the model's own needs float32
    config.dtype = "bfloat16"  # for frozen weights and activations; the reference's frozen part uses float16
    config.remat = True
    config.init = "yuvalkirstain/PickScore_v1"  # --config.init=PATH_OR_ID
    config.tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    config.data_dir = "data/pickapic_v1"
    config.train_split = "train"
    config.eval_split = "validation_unique"
    config.resolution = 1024
    config.posterior = "sample"
    config.flip = False
    config.relabel.model = "yuvalkirstain/PickScore_v1"
    config.relabel.tokenizer = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    config.relabel.margin = 0.1

    config.batch_size = 64
    config.chunk = 2  # 1,024 px: the encoder's and the decoder's activations are four times those of SD 1.5
    config.train_steps = 7000
    config.optimizer.learning_rate = 1e-6
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
