"""Processes compare facts, follow one decision, and end together; quickly with threads, and as real processes."""

import os
import threading
import time
import types

import jax
import pytest

from spo_jax.core.errors import UserError
from spo_jax.parallel import agreement
from spo_jax.parallel.agreement import check_equal, decided, ending_together, gathered, is_visible
from tests.support.processes import two_processes


class Store:
    """The part of jax's key-value store that is used."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def key_value_dir_get(self, prefix):
        with self.changed:
            return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, min(milliseconds, 50) / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: timed out")
            return self.values[key]


@pytest.fixture
def in_three(monkeypatch):
    """Calls a function of the index in three threads that stand for processes; returns results or errors."""
    here = threading.local()
    store = Store()
    monkeypatch.setattr(agreement.distributed, "global_state", types.SimpleNamespace(client=store))
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: here.index)
    monkeypatch.setattr(agreement, "is_writer", lambda: here.index == 0)

    class Rounds:
        reached = [0, 0, 0]

        def __next__(self):
            self.reached[here.index] += 1
            return self.reached[here.index]

    monkeypatch.setattr(agreement, "_rounds", Rounds())

    def run(function):
        results = [None] * 3

        def call(index):
            here.index = index
            try:
                with ending_together():
                    results[index] = function(index)
            except (UserError, ValueError) as error:
                results[index] = error

        threads = [threading.Thread(target=call, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return results

    return run


def test_every_process_receives_the_values_of_all(in_three):
    def meet(index):
        return gathered(index * 10), gathered({"name": "x" * index})

    assert in_three(meet) == [([0, 10, 20], [{"name": ""}, {"name": "x"}, {"name": "xx"}])] * 3


def test_process_0_decides(in_three):
    asked = []

    def decide(index):
        return decided(lambda: asked.append(index) or {"step": 5})

    assert in_three(decide) == [{"step": 5}] * 3 and asked == [0]


def test_equal_facts_pass_and_different_ones_are_named_alike_everywhere(in_three):
    assert in_three(lambda _: check_equal({"config.seed": "1"})) == [None] * 3
    errors = in_three(lambda index: check_equal({"config.seed": "1", f"only {index // 2}": "here", "same": "same"}))
    assert len({str(error) for error in errors}) == 1
    expected = (
        "only 0 is here in process 0 and absent in process 2; only 1 is absent in process 0 and here in process 2"
    )
    assert str(errors[0]) == f"the processes of this run are not equal: {expected}"


def test_many_differences_are_counted(in_three):
    errors = in_three(lambda index: check_equal({f"fact {number}": str(index) for number in range(9)}))
    assert str(errors[2]).endswith("fact 2 is 0 in process 0 and 1 in process 1; 6 more differ")


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_of_one_process_ends_those_that_wait_for_it(in_three, failing):
    def meet(index):
        if index == failing:
            raise UserError("no such file")
        return gathered(index)

    messages = [str(error) for error in in_three(meet)]
    assert messages.pop(failing) == "no such file"
    assert messages == [f"process {failing}: no such file"] * 2


@pytest.mark.parametrize(("error", "status"), [(UserError("no file"), 2), (ValueError("a fault\nmore"), 1)])
def test_a_process_that_waits_elsewhere_is_ended(in_three, monkeypatch, capfd, error, status):
    """As in a program on the devices, which cannot be interrupted."""
    statuses = []
    monkeypatch.setattr(agreement, "_PATIENCE", 0.1)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    ended = threading.Event()

    def meet(index):
        if index == 1:
            raise error
        end = time.monotonic() + 60
        while len(statuses) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        ended.set()

    in_three(meet)
    assert ended.is_set() and set(statuses) == {status}
    first = "no file" if status == 2 else "ValueError: a fault"
    assert set(capfd.readouterr().err.splitlines()) == {f"error: process 1: {first}"}


def test_one_process_waits_for_nobody():
    with ending_together():
        assert gathered(3) == [3] and decided(lambda: "a") == "a" and check_equal({"a": "b"}) is None
        assert is_visible(lambda: True) and not is_visible(lambda: False)


_COLLECTIVE = """
import jax.numpy as jnp
from jax.experimental import multihost_utils
from spo_jax.core.errors import UserError
agreement._PATIENCE = 1.0

@agreement.ending_together()
def main(_):
    if jax.process_index() == 1:
        raise UserError("the disk is full")
    multihost_utils.sync_global_devices("never reached by process 1")

run_command(main, ["program"])
"""


@pytest.mark.slow
def test_real_processes_end_together_although_one_waits_in_a_program():
    """The line is the last thing that each of them prints, and none waits for a timeout of jax."""
    begin = time.monotonic()
    zero, one = two_processes(_COLLECTIVE)
    assert (zero.status, one.status) == (2, 2), (zero.err[-2000:], one.err[-2000:])
    assert zero.err.splitlines()[-1] == "error: process 1: the disk is full"
    assert one.err.splitlines()[-1] == "error: the disk is full"
    assert time.monotonic() - begin < 90


_INTERRUPTED = """
import os, signal, time
from jax.experimental import multihost_utils
from spo_jax.parallel.agreement import gathered
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run in the background

@agreement.ending_together()
def main(_):
    if jax.process_index() == 0:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    WAIT

run_command(main, ["program"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["gathered(1)", "multihost_utils.sync_global_devices('process 0 is gone')"])
def test_ctrl_c_of_process_0_ends_the_others_in_one_line_before_the_store_is_gone(wait):
    zero, one = two_processes(_INTERRUPTED.replace("WAIT", wait))
    assert (zero.status, one.status) == (130, 130), (zero.err[-2000:], one.err[-2000:])
    assert zero.err.splitlines()[-1] == "interrupted"
    assert one.err.splitlines()[-1] == "error: process 0: stopped by Ctrl-C"
