"""GradSPO on the pipeline shipped in the package: `configs/toy.py` with another objective and a running mean.

python -m spo_jax.train --config=configs/gradspo_toy.py --out=runs/gradspo_toy

On two CPU cores it takes about as long as `configs/toy.py`, a few minutes. With the preference model of people's labels
(--config.spm.model=toy_people), a threshold of 0.1 and a learning rate of 9e-4, four batches raise the aesthetic of
held-out images by 0.76 of the base's standard deviation (three seeds; `python -m benchmarks.compare_methods`,
docs/results.md); far more batches exploit that judge. With the judge and the settings below it has not been measured.
"""

from spo_jax import load_config


def get_config():
    """Returns the settings of `configs/toy.py` with another objective."""
    config = load_config("toy")
    config.spo.objective = "gradspo"
    config.spo.grad_scale = 0.5
    config.spo.ema_decay = 0.9
    config.spo.accept_last_step = True
    return config.lock()
