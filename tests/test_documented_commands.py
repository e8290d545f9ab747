"""Every command in a document or a docstring has flags that its module defines, and settings that can be read.

Flags are read from the source of the module, so that nothing is started. Settings are parsed as commands parse them,
and then read by the method. Files that a command names, other than configs, may be the reader's own.
"""

import re
import sys
from unittest import mock

from absl import flags
from ml_collections import config_flags

from spo_jax.core.config_flag import find_config
from spo_jax.core.errors import UserError
from spo_jax.methods import read_settings
from tests.support.commands import ROOT
from tests.support.documented import Command, commands_in, defined_flags

DOCUMENTS = ("*.md", "docs/*.md", "launch/*.md", "benchmarks/**/*.md", "notebooks/*.md", "notebooks/*.ipynb")
DOCSTRINGS = ("configs/*.py", "spo_jax/**/*.py", "benchmarks/**/*.py", "examples/*.py")
FILES = sorted(file for pattern in (*DOCUMENTS, *DOCSTRINGS) for file in ROOT.glob(pattern))
# Such as --config.max_batches=N and --config.FIELD=VALUE; and strings that go on in another line of code.
PLACEHOLDER = re.compile(r"…|\{|=[A-Z]$|\.[A-Z]+=|--config=[$A-Z]|\n")


def mistakes_in(command: Command) -> list[str]:
    """Says what is wrong with a command: unknown flags, and settings that do not exist or are not allowed."""
    words = [word for word in command.words if not PLACEHOLDER.search(word)]
    mistakes = [f"{word} is no flag" for word in words if not word.startswith("--")]
    names = {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}
    known = defined_flags(command.module)
    mistakes += [f"unknown flag --{name}" for name in names if not name.startswith("config") and name not in known]
    if mistakes or not any(word.startswith("--config=") for word in words) or command.module == "spo_jax.doctor":
        return mistakes
    return _mistakes_in_settings([word for word in words if re.match(r"--config[.=]", word)])


def _mistakes_in_settings(words: list[str]) -> list[str]:
    """Reads the settings of a command line; returns why they cannot be read."""
    parsed = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=parsed)
    try:
        words = [f"--config={find_config(word.partition('=')[2])}" if "--config=" in word else word for word in words]
        with mock.patch.object(sys, "argv", ["python", *words]):  # from which the fields are read
            parsed(sys.argv)
        read_settings(parsed.config)
    except (flags.Error, AttributeError, KeyError, UserError) as error:
        return [f"{' '.join(words)}: {error}"]
    return []


def test_documented_commands_can_be_parsed():
    found = {command: file for file in FILES for command in commands_in(file.read_text(encoding="utf-8"))}
    assert len(found) > 200
    mistakes = {(file.name, *command.words): mistakes_in(command) for command, file in found.items()}
    assert {command: what for command, what in mistakes.items() if what} == {}


def test_mistakes_in_a_documented_command_are_found():
    text = """
    python -m spo_jax.train --config=toy --config.spo.treshold=0.1 --out=runs/a
    python -m spo_jax.train --config=toy --config.spo.threshold=2 --out=runs/a   # a softmax differs by 1 at most
    JAX_PLATFORMS=cpu python -m spo_jax.train --config=configs/toy.py \\
      --output=runs/a | tee log
    then `python -m spo_jax.prepare --dataset=toy --pair=2 --data-dir=data/toy` and `python -m spo_jax.sample 4`
    python -m spo_jax.train --config=toys --out=runs/a; ls
    python -m spo_jax.prepare --dataset=toy --pairs=2 --data-dir=data/toy
    """
    whole = [mistakes_in(command) for command in commands_in(text)]
    assert [len(mistakes) for mistakes in whole] == [1, 1, 1, 1, 0, 1, 1], whole
    expected = ["treshold", "threshold", "unknown flag --output", "toys", "", "unknown flag --pair", "4 is no flag"]
    for mistakes, part in zip(whole, expected, strict=True):
        assert part in "".join(mistakes)
