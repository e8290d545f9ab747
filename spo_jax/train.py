"""Trains by any method: ``python -m spo_jax.train --config=toy --out=runs/toy``.

The config names the method. SPO and its rivals tune a text-to-image model and write ``lora.safetensors`` to ``--out``;
``spm`` and ``lrm`` train a preference model or a latent reward model, and write a folder of that name. Every run also
writes ``report.html``, ``summary.json``, curves, checkpoints and, if the method draws images, sample grids.
``--config.spo.beta=5`` overrides a field, ``--help-config`` lists all fields of the config, and ``--resume`` continues
from the last checkpoint. All devices of the machine are used.

The exit status is 0 if the run finished, 1 if the program has a fault, 2 if there is a mistake in flags, config or
files, 75 if the run was preempted and saved, and 130 after Ctrl-C, which saves the run as well.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from spo_jax.core.cli import callable_module, printing, run_command
from spo_jax.core.config import describe
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import Interrupted, Preempted, UserError
from spo_jax.core.files import local_path
from spo_jax.core.progress import stage
from spo_jax.core.run_files import holds_run
from spo_jax.methods import load_method, read_settings
from spo_jax.parallel.settings import check_processes
from spo_jax.run.resume import Resume
from spo_jax.run.settings import RunSettings, check_settings
from spo_jax.run.wandb_log import check_installed


def train(
    settings: RunSettings, out: str | os.PathLike, resume: Resume | None = None, command: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains by the method of the settings, and writes everything from checkpoints to the report to ``out``.

    Args:
      settings: settings of any method, for example ``spo_jax.methods.read_settings(get_config())``.
      out: the run's folder.
      resume: what to do with a run that ``out`` holds already; by default it is an error.
      command: the flags of the command that started the run, from which the report makes its advice.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: a setting, file or folder cannot be used, or a metric is no longer finite.
      Preempted: the process received SIGTERM, and the run has been saved.
      Interrupted: Ctrl-C was pressed, and the run has been saved.
    """
    check_settings(settings)
    if not isinstance(resume, Resume | None):
        choices = "spo_jax.Resume(required=True), spo_jax.Resume(if_there=True) or None"
        raise UserError(f"resume is {resume!r}: expected {choices}")
    try:
        return _train(settings, out, resume or Resume(), command)
    except (Interrupted, Preempted) as stopped:
        again = f"spo_jax.train(settings, {os.fspath(out)!r}, spo_jax.Resume(required=True))"
        raise type(stopped)(f"{stopped}; to continue: {again}") from stopped


def _train(
    settings: RunSettings,
    out: str | os.PathLike,
    resume: Resume,
    command: Sequence[str],
    start: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Checks what it can without jax, then calls ``start``, then trains."""
    begin = time.perf_counter()
    out = local_path(out)
    check_installed(settings.log)
    resume.check(out, holds_run(out))
    method = load_method(settings.method)
    if hasattr(method, "check"):
        method.check(settings)
    data = method.read_data(settings)
    # Imported here because it takes seconds, and the mistakes above are found in one.
    with stage("importing JAX"):
        from spo_jax.work.train import train

    start()
    return train(settings, out, resume, data, begin, command)


# The command


def run() -> None:
    """Runs the command."""
    config = define_config()
    folder = flags.DEFINE_string("out", "runs/train", "Write all results of the run to this folder.")
    resume = flags.DEFINE_bool(
        "resume", False, "Continue from the last checkpoint in --out; an error if there is none."
    )
    auto = flags.DEFINE_bool(
        "auto-resume", False, "Continue from the last checkpoint in --out if there is one, otherwise start a new run."
    )
    changed = flags.DEFINE_bool("resume-with-changes", False, "Continue even though settings or data have changed.")
    help_config = flags.DEFINE_bool("help-config", False, "List every field of the config and exit.")
    multihost = flags.DEFINE_bool("multihost", False, "Find the run's other processes (TPU pod, GKE, Slurm).")
    address = flags.DEFINE_string(
        "coordinator-address", "", "Join the run of process 0 at HOST:PORT, if --multihost does not work."
    )
    processes = flags.DEFINE_integer("num-processes", 0, "Set the number of processes, with --coordinator-address.")
    index = flags.DEFINE_integer("process-id", -1, "Set the number of this process, with --coordinator-address.")

    def main(_) -> None:
        settings = read_settings(config.value)
        if help_config.value:
            _print_fields(settings)
            return
        check_processes(address.value, processes.value, index.value)

        def start() -> None:
            from spo_jax.parallel.multihost import join

            join(multihost.value, address.value, processes.value, index.value)

        _train(settings, folder.value, Resume(resume.value, auto.value, changed.value), sys.argv[1:], start)

    run_command(main)


def _print_fields(settings: RunSettings) -> None:
    """Prints a line for each field, and its meaning below it."""
    defaults = {name: value for name, _, value, _, _ in describe(type(settings)())}
    with printing():
        for name, kind, value, expected, meaning in describe(settings):
            default = "" if value == defaults[name] else f" (default {defaults[name]})"
            allowed = f"; {expected}" if expected else ""
            print(f"--config.{name}={value}  {kind}{allowed}{default}\n    {meaning}")


callable_module(__name__, train)

if __name__ == "__main__":
    sys.exit(run())
