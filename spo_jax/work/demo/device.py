"""The device, on which one thing at a time computes: a drawing of the page, or a command that it started."""

import threading

from spo_jax.core.errors import UserError

_LOOK = 0.2  # seconds between two looks at whether a command has the device


class Device:
    """A lock that drawings wait for, and that tells them not to wait while a command has it.

    ``with device:`` waits for another drawing, which takes seconds. A command takes minutes or hours: meanwhile a
    drawing is refused with a message.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._command = ""

    def __enter__(self) -> "Device":
        while not self._command:
            if self._lock.acquire(timeout=_LOOK):
                return self
        raise UserError(f"{self._command!r} is running and needs the machine: wait, or stop it in the tab My taste")

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def give_to(self, command: str) -> None:
        """Gives the device to a command until `take_back`, once the drawing that has it now is finished."""
        self._lock.acquire()
        self._command = command

    def take_back(self) -> None:
        """Lets drawings have the device again."""
        self._command = ""
        self._lock.release()
