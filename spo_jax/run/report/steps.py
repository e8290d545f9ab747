"""What to do next with a finished run: commands and code that can be copied."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from spo_jax.core.config import describe
from spo_jax.run.settings import RunSettings

_WIDTH = 100  # characters of a line of a command


class NextStep(NamedTuple):
    """One thing that can be done with the results of a run.

    Attributes:
      title: what it is for.
      text: a sentence about it; may be empty.
      code: a command or a piece of Python.
    """

    title: str
    text: str
    code: str


def command(name: str, *arguments: str) -> str:
    """Writes ``python -m spo_jax.NAME ARGUMENTS`` for a shell, over several lines if it is long."""
    lines = [f"python -m spo_jax.{name}"]
    for argument in map(shlex.quote, arguments):
        if len(lines[-1]) + len(argument) < _WIDTH - 3:
            lines[-1] += f" {argument}"
        else:
            lines.append(f"  {argument}")
    return " \\\n".join(lines)


def longer(settings: RunSettings, flags: Sequence[str], out: Path) -> list[NextStep]:
    """Says how to train twice as long, from the last checkpoint.

    Args:
      settings: settings of the run, whose ``LENGTH`` names the fields that say how long it is.
      flags: the flags of `spo_jax.train` that started the run; without them nothing can be said.
      out: the run's folder.
    """
    if not flags or not settings.LENGTH:
        return []
    values = {name: value for name, _, value, _, _ in describe(settings)}
    doubled = {f"--config.{name}": 2 * int(values[name]) for name in settings.LENGTH if int(values[name])}
    replaced = (*doubled, "--out", "--resume", "--auto-resume", "--resume-with-changes")
    kept = [flag for flag in _joined(flags) if flag.partition("=")[0] not in replaced]
    changes = [] if set(settings.LENGTH) <= set(settings.FREE_FIELDS) else ["--resume-with-changes"]
    given = (*kept, *(f"{name}={value}" for name, value in doubled.items()), f"--out={out}", "--resume", *changes)
    text = "From the last checkpoint, for as long again. The same command continues it if it is stopped."
    return [NextStep("Train longer", text, command("train", *given))]


def _joined(flags: Sequence[str]) -> list[str]:
    """Writes every flag as ``--name=value``, which a user may also have given as ``-name value``."""
    joined: list[str] = []
    for flag in flags:
        if flag.startswith("-"):
            joined.append(f"--{flag.lstrip('-')}")
        elif joined:
            joined[-1] += f"={flag}"
    return joined
