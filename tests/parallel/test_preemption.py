"""Ctrl-C in the loop: the first one is answered while the batch computes, and the second one ends the process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spo_jax.parallel.preemption import PreemptionNotice

ROOT = Path(__file__).parents[2]
LOOP = """
import ctypes, signal, sys
from spo_jax.core.signals import Interruption
from spo_jax.parallel.preemption import PreemptionNotice

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run in the background
with Interruption(), PreemptionNotice():
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


def test_in_a_notebook_a_second_ctrl_c_keeps_the_process(monkeypatch, capfd):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt), PreemptionNotice() as notice:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            assert notice.came(1) == notice.came_meanwhile() == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
