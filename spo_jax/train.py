"""Tunes a diffusion model with SPO: ``python -m spo_jax.train --config=configs/tiny.py --out=runs/tiny``.

Leaves in ``--out``: ``lora.safetensors``, ``report.html``, ``summary.json``, curves, sample grids and checkpoints.
``--config.spo.beta=5`` overrides a field; ``--resume`` goes on from the last checkpoint. Every device is used.

Exit status: 0 done, 1 a fault of the program, 2 a mistake in flags, config or files, 75 preempted and saved.
"""

from spo_jax.run_flags import run_training


def run() -> None:
    """The command."""
    run_training("runs/train", _settings, _work)


def _settings():
    from spo_jax.methods.spo.settings import TrainSettings

    return TrainSettings


def _work():
    from spo_jax.training import train

    return train


if __name__ == "__main__":
    run()
