"""Refuses to run: preference models are now trained by `spo_jax.train`, like everything else."""

from spo_jax.core.cli import stop_renamed


def run() -> None:
    """Refuses the command of earlier versions, with the new name in the message."""
    stop_renamed("train_spm")


if __name__ == "__main__":
    run()
