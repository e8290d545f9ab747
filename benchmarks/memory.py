"""The peak of a process's memory, measured without jax, so that torch's side can import this module too."""

import contextlib
import ctypes
import platform
import re
import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def process_peak() -> int:
    """Returns the peak of this process's resident memory in bytes, since its start or the last `reset_process_peak`."""
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.is_file() else None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def device_peak() -> int | None:
    """Returns the peak of jax's first device in bytes; None where the process's memory counts."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def reset_process_peak() -> bool:
    """Resets the peak to the memory that is in use now.

    Memory that was freed but is kept by the C library goes back to the system first; compilers leave much of it.

    Returns:
      Whether the system can reset the peak; if not, it stays that of the whole process.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
        return True
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of XLA or torch says that there is too little memory."""
    return isinstance(error, MemoryError) or bool(re.search(r"RESOURCE_EXHAUSTED|out of memory", str(error), re.I))
