"""Signs of life on stderr: a line for every stage with its seconds, bars, and log lines that do not cut them.

On a terminal and below the cell of a notebook, bars and unfinished stages are redrawn in place. Anywhere else (a file,
a cluster's log) nothing can be redrawn: a bar is a line now and then, and every line begins with the time of day.
"""

import contextlib
import logging as stdlib_logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from spo_jax.core.notebook import Line, in_notebook
from spo_jax.core.words import duration

_LINE_EVERY = 10.0  # seconds between two lines of a bar that cannot be redrawn
_CURSOR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")  # with it, tqdm moves between the lines of inner and outer bars
_NOTHING = 0.1  # seconds of a stage that is not worth a line
_LONG = 2.0  # seconds after which a stage is announced where it cannot be redrawn
_LINE_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_COLUMNS = 110  # width of a bar in a notebook, which has no width of its own

_hidden = False
if in_notebook():
    # A warning of tqdm.auto, which other libraries import, about widgets that our bars do without.
    warnings.filterwarnings("ignore", "IProgress not found")


def hide() -> None:
    """Hides the stages and bars of this process: of several processes, one shows them."""
    global _hidden
    _hidden = True


def say(text: str) -> None:
    """Writes one line to stderr, above the bars; without an effect if nobody reads stderr any more."""
    if in_notebook():
        Line().write(text)
        return
    with contextlib.suppress(OSError, ValueError):  # the terminal was closed, which must not end a run
        line = text if _redraws() else f"{time.strftime('%H:%M:%S')} {text}"
        tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def stage(title: str) -> Iterator[None]:
    """Shows what is being done, and then how many seconds it took.

    An error that ends the stage gets a note that names it.

    Args:
      title: what is done, such as ``reading toy``.
    """
    begin = time.perf_counter()
    finished = threading.Event()
    line = Line()
    announcer = threading.Thread(target=_announce, args=(title, finished, line), daemon=True)
    announcer.start()
    try:
        yield
    except BaseException as error:
        error.add_note(f"while {title}")
        raise
    finally:
        finished.set()
        announcer.join()
    seconds = time.perf_counter() - begin
    if not _hidden and seconds > _NOTHING:
        done = f"{title}: {duration(seconds)}"
        line.write(done) if in_notebook() else say(done)


def _announce(title: str, finished: threading.Event, line: Line) -> None:
    """Shows an unfinished stage: with a running clock, or by a line if it takes long."""
    if _hidden:
        return
    if in_notebook():
        begin = time.perf_counter()
        while not finished.wait(1.0):
            line.write(f"{title} … {time.perf_counter() - begin:.0f} s")
        return
    if not _redraws():
        if not finished.wait(_LONG):
            say(f"{title} …")
        return
    how: dict[str, Any] = {"bar_format": "{desc} [{elapsed}]", "leave": False, "dynamic_ncols": True}
    with tqdm(desc=title, file=sys.stderr, **how) as clock:
        while not finished.wait(1.0):
            clock.refresh()


def bar(title: str, total: int, unit: str, initial: int = 0, over: Iterable[Any] | None = None) -> tqdm:
    """Returns a progress bar, which is a context manager, has ``update``, and iterates over ``over``.

    Args:
      title: what is done.
      total: number of units.
      unit: singular of what is counted.
      initial: number of units that were finished before.
      over: the units.
    """
    how: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True}
    if in_notebook():
        how = {"file": _InPlace(), "ncols": _COLUMNS, "mininterval": 0.5}
    elif not _redraws():
        how = {"file": _Lines(), "bar_format": _LINE_FORMAT, "mininterval": _LINE_EVERY, "miniters": 1}
    return tqdm(over, title, total, initial=initial, unit=unit, disable=_hidden, **how)


def _redraws() -> bool:
    return sys.stderr.isatty()


class _Lines:
    """A file for tqdm that writes each state of a bar as a line of its own."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        """Writes what is visible of ``text``, unless it was the line before."""
        text = _CURSOR.sub("", text).strip()
        if text and text != self._last:
            self._last = text
            say(text)

    def flush(self) -> None:
        """Does nothing, because lines are written as they come."""


class _InPlace:
    """A file for tqdm that shows each state of a bar in the same line of a notebook."""

    encoding = "utf-8"  # by which tqdm decides whether it may draw blocks

    def __init__(self) -> None:
        self._line = Line()

    def write(self, text: str) -> None:
        """Shows what is visible of ``text``."""
        text = _CURSOR.sub("", text).strip()
        if text:
            self._line.write(text)

    def flush(self) -> None:
        """Does nothing, because each state is shown as it comes."""


class LogHandler(stdlib_logging.Handler):
    """Writes log records above the bars, without the names of threads and files; a warning says that it is one."""

    def emit(self, record: stdlib_logging.LogRecord) -> None:
        """Writes one record."""
        text = self.format(record)
        say(text if record.levelno < stdlib_logging.WARNING else f"{record.levelname.lower()}: {text}")
