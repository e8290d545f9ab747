"""The peak of a process's memory; imports nothing heavy, so that it can be asked on torch's side without jax."""

import contextlib
import ctypes
import platform
import re
import resource
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def process_peak() -> int:
    """The peak of this process's resident memory since the start or the last `reset_process_peak`, in bytes."""
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.is_file() else None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def reset_process_peak() -> bool:
    """Starts the peak anew at what is in use now; False where the system cannot (then it stays the whole process's).

    What was freed but is kept by the C library for later goes back to the system first: compilers leave a lot of it.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
        return True
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is XLA's or torch's complaint of too little memory."""
    return isinstance(error, MemoryError) or bool(re.search(r"RESOURCE_EXHAUSTED|out of memory", str(error), re.I))
