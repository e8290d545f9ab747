"""Work beside the command's own, such as compiling, which may be inside compiled code for minutes."""

import contextlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn, TypeVar

T = TypeVar("T")

_left_alone: set[Future] = set()  # while it is at work; a result must not stay here


def beside(work: Callable[[], T], awaited: bool = False) -> Future[T]:
    """Calls a function in a thread, and returns its result as a future.

    Args:
      work: the function, in the middle of which the process may end. It may write what is checked when it is read,
        such as jax's compiled programs: one that was cut short is compiled again.
      awaited: whether a command that ends by a mistake meanwhile waits for it nevertheless.
    """
    threads = ThreadPoolExecutor(1)
    future = threads.submit(work)
    threads.shutdown(wait=False)
    if not awaited:
        _left_alone.add(future)
        future.add_done_callback(_left_alone.discard)
    return future


def leave(status: int) -> NoReturn:
    """Ends the process with an exit status, at once if there is still work beside.

    Python joins its threads when it ends, and nothing interrupts compiled code; a daemon thread inside it can crash the
    process while that takes its libraries down.
    """
    if not _left_alone:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it, or there is none
            stream.flush()
    os._exit(status)
