"""Tunes a diffusion model with SPO: ``python -m spo_jax.train --config=configs/tiny.py --out=runs/tiny``.

Leaves in ``--out``: ``lora.safetensors``, ``report.html``, ``summary.json``, curves, sample grids and checkpoints.
``--config.spo.beta=5`` overrides a field; ``--resume`` goes on from the last checkpoint.
"""

from absl import flags

from spo_jax.core.cli import define_config, run_command
from spo_jax.core.settings import from_config


def run() -> None:
    """The command."""
    config = define_config()
    out = flags.DEFINE_string("out", "runs/train", "Folder for everything that the run leaves behind.")
    resume = flags.DEFINE_bool("resume", False, "Go on from the last checkpoint in --out.")

    def main(_) -> None:
        # Late: flags are checked before jax and the weights take their seconds.
        from spo_jax.spo.settings import TrainSettings

        settings = from_config(TrainSettings, config.value)
        from spo_jax.training import train

        train(settings, out.value, resume.value)

    run_command(main)


if __name__ == "__main__":
    run()
