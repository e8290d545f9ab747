"""The lock on a run's folder: one run at a time, locks of dead runs are taken over, those of living ones never."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.files import Hold, read_json, try_lock, write_json
from spo_jax.run import lock
from spo_jax.run.lock import RunLock
from tests.support.commands import ROOT

_HOLDER = """
import sys, time
from spo_jax.core.files import Hold
from spo_jax.run import lock
folder, system = sys.argv[1:]
if system:  # another host, which does not share the locks of the operating system
    lock._system = lambda: system
    lock.try_lock = lambda path: Hold(open(path, "a"), True)
with lock.RunLock(folder, beat=0.05):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held_by(tmp_path):
    """Starts a process that holds the lock on the folder, on this system or on another one; returns the process."""
    started = []

    def start(system=""):
        line = [sys.executable, "-c", _HOLDER, str(tmp_path), system]
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_run_at_a_time_and_the_next_one_after_it(tmp_path):
    with RunLock(tmp_path / "new" / "run") as first:
        card = read_json(tmp_path / "new" / "run" / "lock.json")
        assert (card["pid"], card["host"]) == (os.getpid(), socket.gethostname())
        holder = f"process {os.getpid()} on host .* since {card['since'][:10]}"
        with pytest.raises(UserError, match=f"^{tmp_path}/new/run is in use by {holder}.*--out$"):
            RunLock(tmp_path / "new" / "run").__enter__()
        first.check()
    assert not files_in(tmp_path)  # nothing was written into the new folder
    with RunLock(tmp_path):
        (tmp_path / "result").touch()
    assert files_in(tmp_path) == ["result"]


def test_the_lock_of_a_killed_run_is_taken_over_at_once(tmp_path, held_by, caplog):
    process = held_by()
    with pytest.raises(UserError, match=f"in use by process {process.pid} on host"):
        RunLock(tmp_path).__enter__()
    kill(process)
    begin = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - begin < 30  # and not the time after which another system's lock is stale
        assert f"taking over from process {process.pid} on host" in caplog.text
        assert read_json(tmp_path / "lock.json")["pid"] == os.getpid()


def test_a_living_run_on_another_host_is_not_taken_over_and_a_dead_one_is(tmp_path, held_by, caplog):
    process = held_by("another system")
    message = f"process {process.pid} on host .*, which still gives signs of life: .*gone, delete {tmp_path}/lock.json$"
    with pytest.raises(UserError, match=message):
        RunLock(tmp_path, beat=0.05, stale=30.0).__enter__()
    assert process.poll() is None
    kill(process)
    with RunLock(tmp_path, beat=0.05, stale=1.0):
        assert re.search(r"last sign of life is \d s old. Waiting up to [01] s for another one", caplog.text)
        assert read_json(tmp_path / "lock.json")["pid"] == os.getpid()


def test_a_holder_may_end_in_order_while_another_run_waits_for_its_signs_of_life(tmp_path, monkeypatch):
    """It removes its files, and a lock on a removed file would exclude nobody."""

    def ends_in_order(waiting, card):
        for name in ("lock.json", ".lock"):
            (tmp_path / name).unlink()
        return False

    write_json(tmp_path / "lock.json", {"pid": 7, "host": "other", "system": "another"})
    monkeypatch.setattr(RunLock, "_lives", ends_in_order)
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            RunLock(tmp_path).__enter__()


@pytest.mark.parametrize("content", ['{"pid": 7, "host": "gone", "system": "another"}', '{"pid": 7, "ho', "[]"])
def test_a_card_that_was_not_renewed_for_long_is_not_waited_for(tmp_path, content):
    """It may be cut off as well."""
    (tmp_path / "lock.json").write_text(content)
    long_ago = time.time() - lock.STALE - 5
    os.utime(tmp_path / "lock.json", (long_ago, long_ago))
    begin = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - begin < 30
        assert read_json(tmp_path / "lock.json")["pid"] == os.getpid()


def test_without_locks_of_the_operating_system_signs_of_life_decide(tmp_path, held_by, monkeypatch):
    process = held_by()
    monkeypatch.setattr(lock, "try_lock", lambda path: Hold(open(path, "a"), None))
    with pytest.raises(UserError, match="still gives signs of life"):
        RunLock(tmp_path, beat=0.05, stale=30.0).__enter__()
    kill(process)
    with RunLock(tmp_path, beat=0.05, stale=0.5):
        pass


def test_a_lock_that_a_dead_host_has_left_on_the_server_does_not_block(tmp_path, monkeypatch):
    """NFS may keep the lock of a host that is gone; its card is not renewed, though."""
    write_json(tmp_path / "lock.json", {"pid": 7, "host": "gone", "system": "another"})
    monkeypatch.setattr(lock, "try_lock", lambda path: Hold(open(path, "a"), False))
    with RunLock(tmp_path, beat=0.05, stale=0.5):
        pass


def test_a_run_that_was_taken_over_notices_and_leaves_the_other_one_s_card(tmp_path):
    """As after its host was suspended."""
    with RunLock(tmp_path, beat=0.05, stale=9.0) as first:
        other = {"pid": 7, "host": "other", "since": "today", "id": "another"}
        write_json(tmp_path / "lock.json", other)
        with pytest.raises(UserError, match="was taken over by process 7 on host other since today, .* for 9 s; this"):
            first.check()
    assert read_json(tmp_path / "lock.json") == other


def test_a_card_that_somebody_has_deleted_comes_back(tmp_path):
    with RunLock(tmp_path, beat=0.05) as held:
        (tmp_path / "lock.json").unlink()
        end = time.monotonic() + 60
        while not (tmp_path / "lock.json").exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert read_json(tmp_path / "lock.json")["pid"] == os.getpid()
        held.check()
    assert not files_in(tmp_path)


def test_the_lock_on_a_file_that_its_holder_has_just_removed_counts_for_nothing(tmp_path, monkeypatch):
    """The next one locks a new file, and both would believe to be alone."""

    def slow(path):
        hold = try_lock(path)
        os.unlink(path)
        return hold

    monkeypatch.setattr(lock, "try_lock", slow)
    with pytest.raises(UserError, match="in use by another process, which is just starting or ending"):
        RunLock(tmp_path).__enter__()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/.lock: "):
        RunLock(tmp_path / "file").__enter__()
