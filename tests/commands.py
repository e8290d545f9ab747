"""Commands of the package, started as a user does or forked from a process that has imported everything.

Importing takes seconds, and there are some hundred commands to give; a fork takes a few hundredths.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent

# What commands import once their flags are read. Not the commands themselves: they define flags as `__main__`.
WORK = ["converting", "exporting", "preparing", "run_flags", "sampling", "spm_evaluation", "spm_training", "training"]


def command_line(name: str, *arguments: Any) -> list[str]:
    """``python -m spo_jax.NAME ARGUMENTS``."""
    return [sys.executable, "-m", f"spo_jax.{name}", *map(str, arguments)]


class Commands:
    """``python -m spo_jax.NAME ARGUMENTS`` in the repository, with ``settings`` on top of the environment."""

    def __init__(self, settings: Mapping[str, str]):
        self._settings = dict(settings)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([f"spo_jax.{name}" for name in WORK])
        # Here and not with the first fork: commands are given by several threads, and the environment is all theirs.
        with mock.patch.dict(os.environ, self._settings):
            forkserver.ensure_running()

    def start(self, name: str, *arguments: Any) -> subprocess.CompletedProcess:
        """In a Python of its own."""
        line = command_line(name, *arguments)
        return subprocess.run(line, cwd=ROOT, env=os.environ | self._settings, capture_output=True, text=True)

    def fork(self, name: str, *arguments: Any) -> subprocess.CompletedProcess:
        """In a fork; the same streams and exit status."""
        line = [f"spo_jax.{name}", *map(str, arguments)]
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder) / stream for stream in ("stdout", "stderr")]
            process = self._context.Process(target=_run, args=(line, streams))
            process.start()
            process.join()
            return subprocess.CompletedProcess(line, process.exitcode, *(stream.read_text() for stream in streams))


def _run(line: list[str], streams: list[Path]) -> None:
    """The command, in the fork; it ends with the command's exit status."""
    os.chdir(ROOT)
    for descriptor, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = line
    try:
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a fork of `multiprocessing` ends without them
