r"""The latent reward model of SDXL, with the settings of its code (arXiv 2502.01051). It has not been run here.

python -m spo_jax.prepare --dataset=pick_a_pic --source=yuvalkirstain/pickapic_v1 --data-dir=data/pickapic_v1 \
  --splits=train --filter=lpo
python -m spo_jax.prepare --dataset=pick_a_pic --source=yuvalkirstain/pickapic_v1 --data-dir=data/pickapic_v1 \
  --splits=validation_unique
python -m spo_jax.train --config=configs/lrm_sdxl.py --out=runs/lrm_sdxl --config.data_dir=data/pickapic_v1

As `configs/lrm_sd15.py`, on the same pairs, with smaller batches and twice the steps. The text features that images are
compared with are those of SDXL's second text encoder. The numbers below are for all devices together: the published 4
pairs per device, times 8.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("lrm")
    config.model = "stabilityai/stable-diffusion-xl-base-1.0"  # --config.model=PATH_OR_ID
    config.vae = "madebyollin/sdxl-vae-fp16-fix"
    config.dtype = "bfloat16"  # for activations; weights that are trained are float32
    config.remat = True

    config.data_dir = "data/pickapic_v1"
    config.train_split = "train"
    config.eval_split = "validation_unique"
    config.resolution = 1024
    config.posterior = "sample"
    config.flip = False

    config.batch_size = 32
    config.chunk = 2
    config.train_steps = 8000
    config.guidance_scale = 7.5
    config.largest_timestep = 951
    config.timestep_interval = 50
    config.scale = 2.6592
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 0.3
    config.optimizer.max_grad_norm = 1.0
    config.mesh.data = 1
    config.mesh.fsdp = -1  # weights, gradients and moments take 33 GB, which all devices share

    config.log.checkpoint_every = 500
    config.log.eval_every = 500
    config.eval.timesteps = (1, 251, 501, 701, 951)
    return config.lock()
