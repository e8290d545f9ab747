"""The flags of every command that trains, and what it does with them."""

from collections.abc import Callable
from typing import Any

from absl import flags

from spo_jax.core.cli import define_config, run_command
from spo_jax.core.config import from_config

flags.disclaim_key_flags()  # --help of a command lists them as its own


def run_training(out: str, settings: Callable[[], type], work: Callable[[], Callable[..., Any]]) -> None:
    """A training command.

    Args:
      out: where the run goes by default.
      settings, work: import the settings' class, and the function of (settings, folder, `Resume`). Late: flags are
        checked before jax and the weights take their seconds.
    """
    config = define_config()
    folder = flags.DEFINE_string("out", out, "Folder for everything that the run leaves behind.")
    resume = flags.DEFINE_bool("resume", False, "Go on from the last checkpoint in --out; an error if there is none.")
    auto = flags.DEFINE_bool("auto-resume", False, "Go on from the last checkpoint in --out if there is one, or start.")
    changed = flags.DEFINE_bool("resume-with-changes", False, "Go on even if settings or data have changed.")
    multihost = flags.DEFINE_bool("multihost", False, "Find the run's other processes (TPU pod, GKE, Slurm).")
    address = flags.DEFINE_string("coordinator-address", "", "HOST:PORT of process 0, where --multihost does not do.")
    processes = flags.DEFINE_integer("num-processes", 0, "Processes of the run, with --coordinator-address.")
    index = flags.DEFINE_integer("process-id", -1, "Number of this process, with --coordinator-address.")

    def main(_) -> None:
        read = from_config(settings(), config.value)
        from spo_jax.parallel.multihost import join
        from spo_jax.run.compilation import keep_compiled_programs
        from spo_jax.run.folder import Resume

        function = work()
        keep_compiled_programs()
        join(multihost.value, address.value, processes.value, index.value)
        function(read, folder.value, Resume(resume.value, auto.value, changed.value))

    run_command(main)
