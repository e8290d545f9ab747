r"""Plain fine-tuning of the LoRA on images with captions, on the pipeline shipped in the package.

python -m spo_jax.train --config=configs/finetune_toy.py --out=runs/finetune_toy --config.images=FOLDER

The folder holds images and captions: metadata.jsonl with a line {"file_name": "a.png", "text": "a red star"} per image,
or a text file beside each image.
"""

from spo_jax.methods import default_config


def get_config():
    """Fields that differ from the method's defaults."""
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
