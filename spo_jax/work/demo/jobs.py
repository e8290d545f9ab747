"""Commands that the page starts: one at a time, in a process of its own, with what it prints in a file."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from spo_jax.core.errors import UserError
from spo_jax.work.demo.device import Device

STOPPED = "stopped by the page"  # the last line of what a command printed that did not end by itself
_TAIL = 2**14  # bytes of the output that the page shows the last lines of


class Jobs:
    """Runs commands on the device; what they have done is on disk, so that nothing else needs to be remembered.

    Args:
      device: what a command has while it runs.
    """

    def __init__(self, device: Device):
        self._device = device
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._name = ""
        self._stopped = False

    @property
    def running(self) -> str:
        """Name of the command that is running; empty if none is."""
        with self._lock:
            return self._name

    def start(self, name: str, arguments: Sequence[str], output: Path) -> None:
        """Starts ``python -m ARGUMENTS``.

        Args:
          name: what it is called in messages.
          arguments: module and flags.
          output: file for what it prints, which replaces that of an earlier start.

        Raises:
          UserError: another command is running, or it cannot be started.
        """
        with self._lock:
            if self._name:
                raise UserError(f"{self._name} is running: wait for its end, or stop it")
            self._name = name
            self._stopped = False
        self._device.give_to(name)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with open(output, "wb") as file:
                # A session of its own: Ctrl-C at the terminal ends the page, which then asks the command to save.
                process = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=os.environ | {"PYTHONUNBUFFERED": "1"},
                )
        except OSError as error:
            self._end()
            raise UserError(f"cannot start {name}: {error.strerror or error}") from error
        with self._lock:
            self._process = process
        threading.Thread(target=self._wait, args=(process, output), daemon=True).start()

    def stop(self) -> bool:
        """Asks the command to save and to end, as Ctrl-C does; a second time ends it at once.

        Returns:
          Whether a command was running.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                return False
            self._stopped = True
            self._process.send_signal(_stopping())
            return True

    def _wait(self, process: subprocess.Popen, output: Path) -> None:
        if process.wait() and self._stopped:
            with contextlib.suppress(OSError), open(output, "a") as file:
                file.write(f"{STOPPED}\n")
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._process = None
            self._name = ""
        self._device.take_back()


def _stopping() -> signal.Signals:
    """Returns the signal that makes a command save and end: Ctrl-C's, unless nobody would hear it.

    A page that a script started in the background ignores it, and so do the commands that the page starts; Windows
    sends it to no single process.
    """
    unheard = os.name == "nt" or signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return signal.SIGTERM if unheard else signal.SIGINT


def was_stopped(output: Path) -> bool:
    """Whether a command ended because somebody stopped it, by its last line: that of `Jobs` or of Ctrl-C."""
    return last_lines(output, 1) in ([STOPPED], ["interrupted"])


def last_lines(output: Path, count: int = 14) -> list[str]:
    """Returns the last lines of what a command printed; none if it never ran."""
    try:
        with open(output, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
