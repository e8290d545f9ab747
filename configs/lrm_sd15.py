r"""The latent reward model of SD 1.5, with the settings of its code (arXiv 2502.01051). It has not been run here.

python -m spo_jax.prepare --dataset=pick_a_pic --source=yuvalkirstain/pickapic_v1 --data-dir=data/pickapic_v1 \
  --splits=train --filter=lpo
python -m spo_jax.prepare --dataset=pick_a_pic --source=yuvalkirstain/pickapic_v1 --data-dir=data/pickapic_v1 \
  --splits=validation_unique
python -m spo_jax.train --config=configs/lrm_sd15.py --out=runs/lrm_sd15 --config.data_dir=data/pickapic_v1

The model starts from the first half of SD 1.5's UNet and its text encoder, and learns which of two noised images people
prefer; `configs/lpo_sd15.py` uses it as a judge. The authors trained on the pairs of Pick-a-Pic v1 whose winner is also
the better one by CLIP and VQAScore, and not much worse by an aesthetic score, about 170,000. The first command is their
filter without VQAScore, which this package does not compute (docs/data.md says how a scorer of it is added), so that
more pairs stay; the pairs that accuracy is measured on are not filtered. The decay of the weights is the default of
PickScore's trainer, on which theirs is built. Their learning rate falls by a ninth until the end, because its linear
decay is as many times as long as there are devices; here it is constant. The numbers below are for all devices
together: the published 16 pairs per device, times 8.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings, with every field that the recipe fixes written out."""
    config = default_config("lrm")
    config.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # --config.model=PATH_OR_ID
    config.clip = "openai/clip-vit-large-patch14"  # whose text projection it starts with
    config.dtype = "bfloat16"  # for activations; weights that are trained are float32
    config.remat = True

    config.data_dir = "data/pickapic_v1"
    config.train_split = "train"
    config.eval_split = "validation_unique"
    config.resolution = 512
    config.posterior = "sample"
    config.flip = False

    config.batch_size = 128
    config.chunk = 8
    config.train_steps = 4000
    config.guidance_scale = 7.5
    config.largest_timestep = 951
    config.timestep_interval = 50
    config.scale = 2.6592
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.3
    config.optimizer.max_grad_norm = 1.0
    config.mesh.data = 1
    config.mesh.fsdp = -1  # weights, gradients and moments take 7.6 GB, which all devices share

    config.log.checkpoint_every = 500
    config.log.eval_every = 500
    config.eval.timesteps = (1, 251, 501, 701, 951)
    return config.lock()
