"""Ctrl-C in the loop: the first one is answered while the batch computes, and the second one ends the process."""

import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOOP = """
import ctypes, signal, sys
from spo_jax.parallel.preemption import PreemptionNotice

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run in the background
with PreemptionNotice():
    print("batch", flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second time it waits for itself, and Python is not asked, as in a program of XLA
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_second_ctrl_c_does_not_wait_for_the_batch():
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LOOP], cwd=ROOT, text=True, **streams) as process:
        assert process.stdout.readline() == "batch\n"
        process.send_signal(signal.SIGINT)
        assert "press it again to stop at once" in process.stderr.readline()
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "interrupted; what was saved before stays\n")
