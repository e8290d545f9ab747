"""Commands of the package, started as a user starts them, or forked from a process that has imported everything.

Importing takes seconds, and the tests run hundreds of commands; a fork takes hundredths of a second.
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

ROOT = Path(__file__).resolve().parents[2]


def imported_modules() -> list[str]:
    """Every module that commands import, but no command itself: runpy would warn that it is run a second time.

    The modules of the page are left out, because gradio starts threads, which forks do not survive.
    """
    files = [file.relative_to(ROOT).with_suffix("") for file in sorted((ROOT / "spo_jax").glob("*/**/*.py"))]
    names = [".".join(file.parts).removesuffix(".__init__") for file in files]
    return [name for name in names if not name.startswith(("spo_jax.build_toy", "spo_jax.work.demo"))]


def command_line(name: str, *arguments: Any) -> list[str]:
    """``python -m spo_jax.NAME ARGUMENTS``."""
    return [sys.executable, "-m", f"spo_jax.{name}", *map(str, arguments)]


class Commands:
    """Runs ``python -m spo_jax.NAME ARGUMENTS`` with ``settings`` on top of the environment."""

    def __init__(self, settings: Mapping[str, str]):
        self._settings = dict(settings)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(imported_modules())
        # Here and not with the first fork: several threads run commands, and they share the environment.
        with mock.patch.dict(os.environ, self._settings):
            forkserver.ensure_running()

    def start(self, name: str, *arguments: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        """Runs a command in a Python of its own, in the folder ``cwd``."""
        line = command_line(name, *arguments)
        return subprocess.run(line, cwd=cwd, env=os.environ | self._settings, capture_output=True, text=True)

    def fork(self, name: str, *arguments: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        """Runs a command in a fork, with the same streams and exit status."""
        line = [f"spo_jax.{name}", *map(str, arguments)]
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder) / stream for stream in ("stdout", "stderr")]
            process = self._context.Process(target=_run, args=(line, streams, cwd))
            process.start()
            process.join()
            return subprocess.CompletedProcess(line, process.exitcode, *(stream.read_text() for stream in streams))


def _run(line: list[str], streams: list[Path], cwd: Path) -> None:
    """Runs the command in the fork, which ends with the command's exit status."""
    os.chdir(cwd)
    for descriptor, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = line
    try:
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # forks of `multiprocessing` end without them
