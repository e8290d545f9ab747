"""Silences orbax's own reports of failures, which `spo_jax.run.checkpoint.Checkpointer` reports in one line.

Orbax logs each failure with pages of tracebacks. It also abandons a save at the first error: writers that are still
running then report to an event loop that is closed, and what was not started or not asked for its result is reported by
Python when it is collected, which may be at any later time, also after the line that ended the command.
"""

import logging as stdlib_logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from absl import logging


def silence_orbax() -> None:
    """Silences every channel by which a failed save may report more than once; it may be called again.

    Reports that do not come from orbax still appear, with one exception: Python's warning about a coroutine that was
    never awaited does not say where the coroutine comes from, so from now on all of them are dropped. This package has
    no coroutines of its own.
    """
    logging.get_absl_logger().addFilter(_not_from_orbax)
    stdlib_logging.getLogger("asyncio").addFilter(_not_of_a_save)
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _NotOfAWriter):
        sys.unraisablehook = _NotOfAWriter(sys.unraisablehook)


def _not_from_orbax(record: Any) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _not_of_a_save(record: Any) -> bool:
    """Drops asyncio's reports of errors that nobody has retrieved, and of tasks that were never finished."""
    return "orbax" not in record.getMessage() and not (record.exc_info and _is_of_orbax(record.exc_info[1]))


def _is_of_orbax(error: BaseException | None) -> bool:
    """Whether an error has passed through orbax, or names one of its files."""
    return "orbax" in "".join(traceback.format_exception(error))


class _NotOfAWriter:
    """A hook for errors that cannot be caught, which drops those of writers on a closed event loop."""

    def __init__(self, hook: Callable[[Any], None]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        first = unraisable.exc_traceback and unraisable.exc_traceback.tb_frame.f_code.co_name
        of_a_thread = unraisable.object is None and first == "call_soon_threadsafe"
        if not (of_a_thread or "orbax" in repr(unraisable.object) or _is_of_orbax(unraisable.exc_value)):
            self._hook(unraisable)
