"""Trains a step-aware preference model: ``python -m spo_jax.train_spm --config=configs/spm_tiny.py --out=runs/spm``.

Learns from what ``python -m spo_jax.prepare`` has made. Leaves in ``--out``: ``spm/``, which
``python -m spo_jax.train --config.spm.model=OUT/spm`` takes; ``report.html``, ``summary.json``, curves, accuracies
against timestep as numbers and plot, and checkpoints. ``--config.batch_size=32`` overrides a field; ``--resume`` goes
on from the last checkpoint. Every device is used.

Exit status: 0 done, 1 a fault of the program, 2 a mistake in flags, config or files, 75 preempted and saved.
"""

from spo_jax.run_flags import run_training


def run() -> None:
    """The command."""
    run_training("runs/train_spm", _settings, _work)


def _settings():
    from spo_jax.methods.spm.settings import SPMTrainSettings

    return SPMTrainSettings


def _work():
    from spo_jax.spm_training import train_spm

    return train_spm


if __name__ == "__main__":
    run()
