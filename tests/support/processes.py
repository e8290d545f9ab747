"""Two real processes of one run, over loopback, a device each."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.commands import ROOT

_JOIN = """
import sys
import jax
address, index = sys.argv[1:3]
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(address, 2, int(index))
from spo_jax.core.cli import run_command
from spo_jax.parallel import agreement
"""


class Ended(NamedTuple):
    """How a process has ended."""

    status: int
    out: str
    err: str


def free_address() -> str:
    """An address for a coordinator."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def two_processes(code: str, arguments: Sequence[Sequence[object]] = ((), ()), timeout: float = 300.0) -> list[Ended]:
    """Runs ``code`` in two processes that have joined, with ``arguments[index]`` from ``sys.argv[3]`` on."""
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _JOIN + code, address, str(index), *map(str, own)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(Path(ROOT))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, own in enumerate(arguments)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
