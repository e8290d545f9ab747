"""Signals that are heard at once, although the main thread may spend minutes inside compiled code.

Python runs a signal's handler in the main thread, once that returns to Python; an XLA program or its compilation can
hold it for minutes. Its interpreter also writes the signal's number to a socket immediately, and a thread can wait for
that.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn

INTERRUPTED = 130  # exit status of a command that Ctrl-C ended
_GRACE = 2.0  # seconds in which the main thread may clean up after Ctrl-C


@contextlib.contextmanager
def listening(heard: Callable[[int], None]) -> Iterator[None]:
    """Calls a function in a thread of its own with the number of every signal that Python handles.

    The signals keep their handlers. An inner use replaces an outer one while it lasts. Only the main thread may listen
    to signals; in another one nothing is heard.

    Args:
      heard: function of a signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    source, sink = socket.socketpair()
    sink.setblocking(False)
    before = signal.set_wakeup_fd(sink.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(source, heard), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sink.close()  # which ends the thread


def _listen(source: socket.socket, heard: Callable[[int], None]) -> None:
    with source:
        while number := source.recv(1):
            heard(number[0])


_last_words: list[Callable[[], None]] = []


@contextlib.contextmanager
def last_words(say: Callable[[], None]) -> Iterator[None]:
    """Calls a function if the process is abandoned in the meantime, so that others learn of it."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


def abandon(message: str) -> NoReturn:
    """Ends the process at once, from whichever thread, with one line."""
    if message:
        write_line(message)
    for say in _last_words:
        with contextlib.suppress(Exception):
            say()
    os._exit(INTERRUPTED)


class Interruption:
    """A context in which Ctrl-C ends the process within seconds, whatever the main thread does.

    The main thread gets its `KeyboardInterrupt` and may clean up for two seconds. A second Ctrl-C does not wait.

    Args:
      message: the line about the end.

    Attributes:
      active: whether such a context is open, as in every command.
    """

    active: ClassVar[bool] = False

    def __init__(self, message: str = "interrupted") -> None:
        self._message = message
        self._seen = False
        self._reported = False
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Interruption":
        self._held.enter_context(listening(self._heard))
        self._held.callback(setattr, Interruption, "active", Interruption.active)
        Interruption.active = True
        hook = sys.unraisablehook

        def quiet(error: Any) -> None:
            """Drops what Python raises in a callback, such as jax's of the garbage collector, with a traceback."""
            if error.exc_type is not KeyboardInterrupt:
                hook(error)

        sys.unraisablehook = quiet
        self._held.callback(_restore_hook, quiet, hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _heard(self, number: int) -> None:
        if number != signal.SIGINT or signal.getsignal(number) is signal.SIG_IGN:
            return
        if self._seen:
            self._abandon()
        self._seen = True
        timer = threading.Timer(_GRACE, self._abandon)
        timer.daemon = True
        timer.start()

    def report(self, message: str = "") -> None:
        """Writes the one line about the end, or another one, unless it has been written."""
        if not self._reported:
            self._reported = True
            write_line(message or self._message)

    def _abandon(self) -> None:
        self.report()
        abandon("")


def _restore_hook(ours: Callable[[Any], None], before: Callable[[Any], None]) -> None:
    if sys.unraisablehook is ours:  # otherwise somebody has put a hook on top, which calls ours and is still needed
        sys.unraisablehook = before


def write_line(message: str) -> None:
    """Writes a line to stderr without waiting for whoever else writes there."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it, or there is no stderr
        start = "\r\033[K" if sys.stderr.isatty() else ""  # over a bar
        os.write(2, f"{start}{message}\n".encode())
