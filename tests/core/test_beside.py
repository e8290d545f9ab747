"""Work beside a command: its result, and that a mistake does not wait for it."""

import gc
import os
import subprocess
import sys
import weakref

import pytest

from spo_jax.core.beside import beside
from tests.support.commands import ROOT

_COMMAND = """
import sys, time
from spo_jax.core.beside import beside
from spo_jax.core.cli import run_command
from spo_jax.core.errors import UserError

def main(_):
    beside(lambda: time.sleep(float(sys.argv[1])) or print("done", flush=True), awaited=sys.argv[2] == "awaited")
    time.sleep(0.1)
    print("what was said before")
    raise UserError("these images are too small")

run_command(main, ["program"])
"""


def test_a_result_is_not_kept_once_it_is_there():
    class Result:
        pass

    future = beside(Result)
    result = weakref.ref(future.result())
    del future
    gc.collect()
    assert result() is None


def test_results_and_errors_come_back():
    assert beside(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        beside(lambda: 1 / 0).result()


@pytest.mark.parametrize(("seconds", "awaited", "waits"), [(60, "", False), (1, "awaited", True), (0, "", False)])
def test_a_mistake_ends_the_command_whatever_is_still_at_work(seconds, awaited, waits):
    """Python joins its threads when it ends, so that the line would come at once and the prompt minutes later."""
    line = [sys.executable, "-c", _COMMAND, str(seconds), awaited]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=50, env=environment)
    said = ["what was said before", "done"] if seconds else ["done", "what was said before"]
    ends = waits or not seconds
    assert (done.returncode, done.stdout.splitlines()) == (2, said if ends else said[:1])
    assert done.stderr == "error: these images are too small\n"
