"""Commands that the page starts: one at a time, alone on the device, and stopped as by Ctrl-C."""

import signal
import threading
import time

import pytest

from spo_jax.core.errors import UserError
from spo_jax.work.demo.device import Device
from spo_jax.work.demo.jobs import Jobs, last_lines, was_stopped

# Prints a line and goes on until Ctrl-C, after which it prints another one.
LONG = ("http.server", "0", "--bind=127.0.0.1")


def wait_until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_command_has_the_device_until_it_is_stopped(tmp_path):
    device = Device()
    jobs = Jobs(device)
    output = tmp_path / "logs" / "out.txt"
    assert not jobs.stop()
    jobs.start("Train the LoRA", LONG, output)
    assert jobs.running == "Train the LoRA"
    with pytest.raises(UserError, match="'Train the LoRA' is running and needs the machine"), device:
        pass
    with pytest.raises(UserError, match="Train the LoRA is running: wait for its end, or stop it"):
        jobs.start("another", LONG, output)
    wait_until(lambda: last_lines(output))
    assert jobs.stop()
    wait_until(lambda: not jobs.running)
    assert "Keyboard interrupt received" in last_lines(output)[-1]
    with device:
        pass


def test_a_command_of_a_page_in_the_background_can_be_stopped(tmp_path):
    """Such a page ignores Ctrl-C, and what it starts does as well."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        jobs = Jobs(Device())
        jobs.start("Train the LoRA", LONG, tmp_path / "out.txt")
        wait_until(lambda: last_lines(tmp_path / "out.txt"))
        assert jobs.stop()
        wait_until(lambda: not jobs.running)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_that_was_stopped_is_told_from_one_that_failed(tmp_path):
    jobs = Jobs(Device())
    jobs.start("a long one", ("timeit", "-n1", "-r1", "-s", "import time", "time.sleep(60)"), tmp_path / "out.txt")
    wait_until(jobs.stop)
    wait_until(lambda: not jobs.running)
    assert was_stopped(tmp_path / "out.txt")
    jobs.start("a slip", ("no_such_module",), tmp_path / "out.txt")
    wait_until(lambda: not jobs.running)
    assert not was_stopped(tmp_path / "out.txt") and not was_stopped(tmp_path / "none.txt")


def test_a_command_that_fails_leaves_its_words_and_frees_the_device(tmp_path):
    device = Device()
    jobs = Jobs(device)
    jobs.start("a slip", ("no_such_module",), tmp_path / "out.txt")
    wait_until(lambda: not jobs.running)
    assert last_lines(tmp_path / "out.txt")[-1].endswith("No module named no_such_module")
    with device:
        pass
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot start another: "):
        jobs.start("another", LONG, tmp_path / "file" / "out.txt")
    assert not jobs.running
    with device:
        pass


def test_a_command_waits_for_the_drawing_that_has_the_device(tmp_path):
    device = Device()
    jobs = Jobs(device)
    drawing = device.__enter__()
    thread = threading.Thread(target=jobs.start, args=("short", ("platform",), tmp_path / "out.txt"))
    thread.start()
    time.sleep(0.1)
    assert not (tmp_path / "out.txt").exists()
    drawing.__exit__()
    thread.join()
    wait_until(lambda: not jobs.running)
    assert last_lines(tmp_path / "out.txt")


def test_only_the_last_lines_are_shown(tmp_path):
    (tmp_path / "out.txt").write_text("".join(f"line {number}\n\n" for number in range(9999)))
    assert last_lines(tmp_path / "out.txt", 2) == ["line 9997", "line 9998"]
    assert last_lines(tmp_path / "absent.txt") == []
