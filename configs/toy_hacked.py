r"""SPO on the toy with a judge that is easily hacked, and a guard that sees it: docs/guide.md tells the story.

python -m spo_jax.prepare --dataset=toy --pairs=200 --held-out-pairs=200 --data-dir=data/toy_few
python -m spo_jax.train --config=configs/spm_toy.py --config.data_dir=data/toy_few --config.train_steps=100 \
  --config.optimizer.warmup_steps=10 --config.eval.pairs=100 --config.log.eval_every=0 --out=runs/few_spm
python -m spo_jax.train --config=configs/toy_hacked.py --out=runs/hacked

The second command makes the judge, which has learnt 200 pairs by heart. The three took seven minutes on two CPU cores
that had other work to do. With the toy of commit 623dc89, the guard stopped the run after 20 of 48 batches, and
exported an aesthetic of 0.37 -> 0.45, that of batch 8.
"""

from spo_jax.methods import default_config


def get_config():
    """Returns the settings; fields not set here keep SPO's defaults, which are those published for SD 1.5."""
    config = default_config("spo")
    config.model = "toy"
    config.prompts = "toy:train"
    config.prompts_per_batch = 4
    config.num_epochs = 20
    config.max_batches = 48

    config.spm.model = "runs/few_spm/spm"  # --config.spm.model=FOLDER

    config.spo.divert_start_step = 11
    config.spo.threshold = 0.3
    config.spo.decode_chunk = 96
    config.spo.train_batch_size = 16
    config.spo.train_chunk = 4
    config.optimizer.learning_rate = 3e-3  # ten times that of configs/toy.py, so that it takes minutes
    config.lora.rank = 8

    config.log.eval_every = 4
    config.log.checkpoint_every = 12

    config.eval.prompts = "toy:held_out"
    config.eval.rewards = "toy"
    config.eval.images = 50
    config.eval.guard = "stop"
    config.eval.guard_rewards = "toy"
    config.eval.guard_images = 50
    return config.lock()
