"""A run that gets SIGTERM, one that is killed without notice, and one whose disk is full."""

import json
import os
import random
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from spo_jax.run.metrics import read_metrics
from spo_jax.weights.store import read_file

pytestmark = pytest.mark.slow  # dozens of starts of the command; tests/run/test_loop.py has the signal in one process
ROOT = Path(__file__).resolve().parents[2]
BATCHES = 80  # more than are done before twenty kills


@pytest.fixture
def started(micro_config, tmp_path):
    """Starts ``python -m spo_jax.train`` with a checkpoint after every batch; returns the process."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    running = []

    def start(out, *flags, config=None, devices=8):
        """By default a run of SPO with `BATCHES` batches; another config brings its own length."""
        line = [sys.executable, "-m", "spo_jax.train", f"--config={config or micro_config}", f"--out={out}", *flags]
        line += ["--config.log.checkpoint_every=1", "--config.log.keep_checkpoints=2"]
        if config is None:
            length = [] if any("max_batches" in flag for flag in flags) else [f"--config.max_batches={BATCHES}"]
            line += ["--config.log.eval_every=0", "--config.optimizer.learning_rate=1e-3", *length]
        # Ctrl-C is ignored if the tests run in the background, and children would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = tmp_path / f"log-{len(running)}"  # a pipe would be full before the run is over
        with log.open("w") as stderr:
            running.append(
                subprocess.Popen(line, cwd=ROOT, env=environment | {"JAX_NUM_CPU_DEVICES": str(devices)}, stderr=stderr)
            )
        running[-1].log = log
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


def ended(process, status=0):
    """Waits for the end, which has to have this status; returns the log."""
    found = process.wait(timeout=600)
    log = process.log.read_text()
    assert found == status, log[-4000:]
    return log


def rows_in(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_rows(out, count, process):
    wait_until(lambda: rows_in(out) >= count, process)


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.log.read_text()[-4000:]
        time.sleep(0.02)


def curves(out):
    rows = read_metrics(out / "metrics.jsonl")
    clock = ("seconds/", "pairs_per_second")
    return [{name: value for name, value in row.items() if not name.startswith(clock)} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run, which the first test that needs it makes."""
    return tmp_path_factory.mktemp("whole") / "run"


def undisturbed(whole, started):
    if not (whole / "summary.json").exists():
        ended(started(whole))
    return whole


def assert_equal_weights(one, other):
    found = read_file(one)
    wanted = read_file(other)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])


def assert_equal_runs(one, other):
    assert_equal_weights(*(run / "lora.safetensors" for run in (one, other)))
    scores = [json.loads((run / "summary.json").read_text())["scores"] for run in (one, other)]
    assert scores[0] == scores[1]
    assert curves(one) == curves(other)
    assert [row["step"] for row in curves(one)] == list(range(BATCHES + 1))  # the first is that before training


@pytest.mark.parametrize("sent, status, name", [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_finishes_the_batch_and_saves(started, whole, tmp_path, sent, status, name):
    out = tmp_path / "run"
    process = started(out)
    wait_for_rows(out, 3, process)
    process.send_signal(sent)
    log = ended(process, status)
    saved = max(int(path.name) for path in (out / "checkpoints").iterdir())
    *_, line = log.splitlines()
    assert f"stopped by {name} and saved after batch {saved} of {BATCHES}; to resume: " in line
    assert rows_in(out) == saved + 1 and not (out / "summary.json").exists()
    assert (out / "lora.safetensors").exists()
    command = shlex.split(line.partition("to resume: ")[2])
    assert command == ["python", "-m", "spo_jax.train", *process.args[3:], "--resume"]
    ended(started(out, "--resume"))
    assert_equal_runs(out, undisturbed(whole, started))


def test_ctrl_c_stops_several_processes_at_the_same_batch(started, tmp_path):
    """Only one of them receives it, and all end with the status of an interruption."""
    out = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together = [f"--coordinator-address=127.0.0.1:{free.getsockname()[1]}", "--num-processes=2"]
    together += ["--config.mesh.data=2"]
    processes = [started(out, *together, f"--process-id={index}", devices=1) for index in range(2)]
    wait_for_rows(out, 3, processes[0])
    processes[1].send_signal(signal.SIGINT)
    logs = [ended(process, 130) for process in processes]
    saved = max(int(path.name) for path in (out / "checkpoints").iterdir())
    assert saved + 1 == rows_in(out) < BATCHES
    for log in logs:
        assert f"stopped by Ctrl-C and saved after batch {saved} of {BATCHES}" in log.splitlines()[-1]


def test_ctrl_c_before_the_loop_ends_with_one_line(started, tmp_path):
    process = started(tmp_path / "run")
    wait_until(lambda: "drawing" in process.log.read_text() or "reading" in process.log.read_text(), process)
    process.send_signal(signal.SIGINT)
    log = ended(process, 130)
    assert log.splitlines()[-1] == "interrupted" and "Traceback" not in log
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def kill_at_a_random_moment(process, draw, out):
    """Kills now and then while the run starts; mostly in the batches after that, between them, or during a save."""
    begin = rows_in(out)
    early = draw.random() < 0.25
    latest = time.monotonic() + (draw.uniform(0, 15) if early else 600)  # seconds; a start takes 10 to 60
    enough = begin + draw.randint(1, 2)
    while time.monotonic() < latest and rows_in(out) < enough:
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.1))
    assert process.poll() is None, process.log.read_text()[-4000:]  # it was killed, it did not end
    process.kill()
    process.wait()


def test_sigkill_at_twenty_moments_loses_nothing_that_was_saved(started, whole, tmp_path):
    """The run is killed again and again; every time `--auto-resume` continues it."""
    draw = random.Random(0)
    out = tmp_path / "run"
    reached = 0
    for _ in range(20):
        kill_at_a_random_moment(started(out, "--auto-resume"), draw, out)
        steps = [int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit()]
        assert max(steps, default=0) >= reached  # what was saved stays
        reached = max(steps, default=0)
    assert 5 < reached < BATCHES
    ended(started(out, "--auto-resume"))
    assert_equal_runs(out, undisturbed(whole, started))


def test_a_preference_model_that_was_stopped_and_killed_equals_an_undisturbed_one(started, spm_config, tmp_path):
    """In the middle of epochs: pairs, noise, moments and accuracies continue where they were."""
    flags = ["--config.train_steps=30", "--config.log.eval_every=10"]
    out = tmp_path / "run"
    alone = tmp_path / "alone"
    process = started(out, *flags, config=spm_config)
    wait_for_rows(out, 3, process)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM and saved after batch" in ended(process, 75)
    for draw in (random.Random(0), random.Random(1)):
        kill_at_a_random_moment(started(out, "--auto-resume", *flags, config=spm_config), draw, out)
    ended(started(out, "--auto-resume", *flags, config=spm_config))
    ended(started(alone, *flags, config=spm_config))
    assert_equal_weights(*(run / "spm" / "model.safetensors" for run in (out, alone)))
    assert curves(out) == curves(alone)
    assert [row["step"] for row in curves(out)] == list(range(31))  # the first was measured before training
    measured = [{path.name: path.read_text() for path in run.glob("evaluation/*.json")} for run in (out, alone)]
    assert measured[0] == measured[1] and len(measured[0]) == 4


def test_a_full_disk_ends_the_run_with_the_reason(started, tmp_path):
    """The disk fills up in the middle of the run: from then on no file may grow beyond a few curves.

    (The process's log is a file as well; it is smaller than that.)
    """
    out = tmp_path / "run"
    room = 40_000  # bytes; a checkpoint has files that are larger, curves and log do not
    process = started(out)
    wait_for_rows(out, 5, process)  # that of batch 4: two checkpoints are complete before the third is begun
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    log = ended(process, 2)
    assert len(log) < room and "Traceback" not in log and "Error:" not in log
    errors = [line for line in log.splitlines() if "cannot write" in line]
    assert errors == log.splitlines()[-1:]
    assert "Warning" not in log
    assert errors[0] == f"error: cannot write a checkpoint in {out}/checkpoints: File too large"
    steps = [int(path.name) for path in (out / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(steps) == 2 and max(steps) < rows_in(out) < BATCHES
    log = ended(started(out, "--resume", f"--config.max_batches={max(steps) + 1}"))
    assert f"resuming after batch {max(steps)}" in log and "damaged" not in log
