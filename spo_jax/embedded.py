"""Refuses to be imported or run: the shipped pipeline is now called toy; its commands are in `spo_jax.build_toy`."""

import sys

from spo_jax.core import renamed
from spo_jax.core.cli import stop

_COMMANDS = ", ".join(f"spo_jax.{new}" for old, new in renamed.COMMANDS.items() if old.startswith("embedded."))
_MESSAGE = f"spo_jax.embedded is now spo_jax.build_toy, with the commands {_COMMANDS}"

if sys.argv[0] == "-m":  # python -m spo_jax.embedded.build imports this module first
    stop(_MESSAGE)
raise ImportError(_MESSAGE)
