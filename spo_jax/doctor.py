"""Looks at the machine, at a run or at a model: ``python -m spo_jax.doctor``.

Without flags it says what is installed, which devices there are with how much memory, and what is missing for which
feature, with the line that installs it. With ``--run=runs/toy`` it reads the curves of a run, which may be still going
or have died, and says in plain words whether it is learning and what looks wrong. With ``--model=toy`` it says what
kind of model that is, and whether training it will fit this machine.

The exit status is 0 if nothing is in the way, 1 if a problem was found, and 2 if a flag names nothing that can be read.
"""

import json
import os
import sys
from typing import Any

from absl import flags

from spo_jax import toy
from spo_jax.core.cli import callable_module, printing, run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.json_text import finite_or_null
from spo_jax.core.run_files import no_such_run, run_of
from spo_jax.weights import hub


def doctor(
    run: str | os.PathLike = "",
    model: str | os.PathLike = "",
    revision: str = "",
    config: str = "",
    compile: bool = False,
    as_json: bool = False,
    base: str = "",
) -> int:
    """Looks at a run, at a model or, if neither is given, at the machine, and prints what it finds.

    Args:
      run: folder of a run.
      model: folder, file, hub id, or ``toy``.
      revision: revision of the hub id.
      config: config whose training the model should fit; by default the shipped one for this kind of model.
      compile: compile the programs of that training for their memory, instead of estimating it.
      as_json: print JSON.
      base: folder or hub id that lends a model in one file its tokenizers and scheduler.

    Returns:
      The number of problems.

    Raises:
      UserError: there is no such run or model, or it cannot be read; or an argument about a model without one.
    """
    for name, given in {"revision": revision, "config": config, "compile": compile, "base": base}.items():
        if given and not model:
            raise UserError(f"--{name} is about a model: expected --model as well")
    sections = []
    if run:
        folder, _ = run_of(local_path(run))
        if not folder.exists():
            raise UserError(no_such_run(folder))
        # Imported here, as all of the work: this part needs no jax, and so no device that the run may hold.
        from spo_jax.work.doctor.run import examine_run

        sections.append(examine_run(folder))
    if model:
        if str(model) != toy.NAME:
            hub.local(str(model))  # refuses what can be neither here nor on the hub
        from spo_jax.work.doctor.model import examine_model

        sections.append(examine_model(str(model), revision, config, compile, base))
    if not sections:
        from spo_jax.work.doctor.machine import examine_machine

        sections += examine_machine()
    _print(sections, as_json)
    return sum(section.problems for section in sections)


def _print(sections: list[Any], as_json: bool) -> None:
    with printing():
        if as_json:
            everything = {section.name: section.json() for section in sections}
            print(json.dumps(finite_or_null(everything), indent=2))
        else:
            print("\n\n".join(section.text() for section in sections))


# The command

_NAMED = {"run": "the folder of a run", "model": "a folder, file, hub id or 'toy'"}


def run() -> None:
    """Runs the command."""
    folder = flags.DEFINE_string("run", "", "Read the curves of this run's folder.")
    model = flags.DEFINE_string("model", "", "Look at this model: folder, file, hub id, or 'toy'.")
    revision = flags.DEFINE_string("revision", "", "Use this revision of the model's hub id.")
    base = flags.DEFINE_string("base", "", "Take a single file's tokenizers and scheduler from this folder or hub id.")
    config = flags.DEFINE_string(
        "config", "", "See whether this training fits: a config (default: the shipped one for this kind of model)."
    )
    compile_it = flags.DEFINE_bool(
        "compile", False, "Compile that training for its memory, which takes minutes, instead of estimating it."
    )
    as_json = flags.DEFINE_bool("json", False, "Print JSON.")

    def main(_) -> None:
        for name in ("run", "model"):
            if flags.FLAGS[name].present and not flags.FLAGS[name].value:
                raise UserError(f"--{name} is empty: expected {_NAMED[name]}, or no --{name} to look at the machine")
        looked_at = (folder.value, model.value, revision.value, config.value)
        if doctor(*looked_at, compile_it.value, as_json.value, base.value):
            sys.exit(1)

    run_command(main)


callable_module(__name__, doctor)

if __name__ == "__main__":
    sys.exit(run())
