"""Refuses: preference models are trained by `spo_jax.train`, like everything else."""

from spo_jax.core.cli import stop_renamed


def run() -> None:
    """The command of earlier versions."""
    stop_renamed("train_spm")


if __name__ == "__main__":
    run()
