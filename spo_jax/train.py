"""Tunes a diffusion model with SPO: ``python -m spo_jax.train --config=configs/tiny.py --out=runs/tiny``.

Leaves in ``--out``: ``lora.safetensors``, ``report.html``, ``summary.json``, curves, sample grids and checkpoints.
``--config.spo.beta=5`` overrides a field; ``--resume`` goes on from the last checkpoint. Every device is used.

Exit status: 0 done, 1 a fault of the program, 2 a mistake in flags, config or files, 75 preempted and saved.
"""

from absl import flags

from spo_jax.core.cli import define_config, run_command
from spo_jax.core.settings import from_config


def run() -> None:
    """The command."""
    config = define_config()
    out = flags.DEFINE_string("out", "runs/train", "Folder for everything that the run leaves behind.")
    resume = flags.DEFINE_bool("resume", False, "Go on from the last checkpoint in --out; an error if there is none.")
    auto = flags.DEFINE_bool("auto-resume", False, "Go on from the last checkpoint in --out if there is one, or start.")
    changed = flags.DEFINE_bool("resume-with-changes", False, "Go on even if settings or prompts have changed.")
    multihost = flags.DEFINE_bool("multihost", False, "Find the run's other processes (TPU pod, GKE, Slurm).")
    address = flags.DEFINE_string("coordinator-address", "", "HOST:PORT of process 0, where --multihost does not do.")
    processes = flags.DEFINE_integer("num-processes", 0, "Processes of the run, with --coordinator-address.")
    index = flags.DEFINE_integer("process-id", -1, "Number of this process, with --coordinator-address.")

    def main(_) -> None:
        # Late: flags are checked before jax and the weights take their seconds.
        from spo_jax.spo.settings import TrainSettings

        settings = from_config(TrainSettings, config.value)
        from spo_jax.core.compilation import keep_compiled_programs
        from spo_jax.parallel.processes import join
        from spo_jax.run_folder import Resume
        from spo_jax.training import train

        keep_compiled_programs()
        join(multihost.value, address.value, processes.value, index.value)
        train(settings, out.value, Resume(resume.value, auto.value, changed.value))

    run_command(main)


if __name__ == "__main__":
    run()
