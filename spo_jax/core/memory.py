"""The host's memory, and memory that does not suffice: one line that says what to lower, instead of a traceback."""

import contextlib
import ctypes
import gc
import re
from collections.abc import Callable, Iterator

from spo_jax.core.errors import UserError
from spo_jax.core.words import size

GIB = 2**30  # bytes
_UNITS = {"bytes": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50}
_AMOUNT = re.compile(r"allocat\w*\s+(?:of\s+)?([\d.]+)\s*(bytes|[KMGTP]iB|B)\b", re.IGNORECASE)
_USED = re.compile(r"Used ([\d.]+\w?) of ([\d.]+\w?)")  # what compilers for TPUs say
ELSEWHERE = (
    "end other programs that use this memory, or use a machine with more (with JAX_PLATFORMS=cpu, the memory of the "
    "host instead of an accelerator's)"
)


def return_unused_memory() -> None:
    """Gives memory that is free again back to the system, where the C library can do that on demand, as glibc can.

    Compilers leave some hundred MiB in small pieces, which the process would otherwise keep to its end.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


@contextlib.contextmanager
def explaining_memory(advice: Callable[[], str]) -> Iterator[None]:
    """Turns an error about memory, of a device or of the host, into a `UserError`.

    Args:
      advice: function that returns what to do, such as ``lower --batch = 8``.

    Raises:
      UserError: there is not enough memory; the message says in which stage, and what to do.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(out_of_memory(error, advice())) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error means that memory did not suffice; jax has no type of its own for it."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and (
        "resource_exhausted" in text or "out of memory" in text
    )


def out_of_memory(error: BaseException, advice: str) -> str:
    """Describes an error about memory: where, in which stage, how much was asked for, and what to do."""
    where = "this machine" if isinstance(error, MemoryError) else "a device"
    # `spo_jax.core.progress.stage` leaves a note, and jax leaves others.
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("while ")]
    stage = "".join(f" {note}" for note in notes[:1])
    return f"out of memory on {where}{stage}{_asked_for(str(error))}: {advice}"


def _asked_for(text: str) -> str:
    if used := _USED.search(text):
        return f" ({used[1]} needed, {used[2]} there)"
    if not (asked := _AMOUNT.search(text)):
        return ""
    amount = float(asked[1]) * _UNITS[asked[2].lower()]
    return f" ({size(amount)} more were asked for)"
