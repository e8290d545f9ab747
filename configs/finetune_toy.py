r"""Plain fine-tuning of a LoRA on images with captions, for the pipeline shipped in the package.

python -m spo_jax.train --config=configs/finetune_toy.py --out=runs/finetune_toy --config.images=FOLDER

FOLDER holds the images and their captions: either metadata.jsonl with a line {"file_name": "a.png", "text": "a red
star"} for each image, or a text file beside each image.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep the method's defaults."""
    config = default_config("finetune")
    config.model = "toy"
    config.train_steps = 100
    config.batch_size = 16
    config.chunk = 16
    config.optimizer.learning_rate = 1e-3
    config.lora.rank = 8
    config.log.eval_every = 50
    config.log.checkpoint_every = 50
    return config.lock()
