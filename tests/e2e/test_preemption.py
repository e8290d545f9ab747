"""A run that is told to go, and one that is killed without a word."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from spo_jax.metrics import read_metrics
from spo_jax.weights.store import read_file

pytestmark = pytest.mark.slow  # a dozen starts of the command; tests/spo/test_loop.py has the signal in one process
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def started(config_file):
    """Starts ``python -m spo_jax.train`` with a checkpoint after every batch; gives the running process."""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    running = []

    def start(out, *flags):
        line = [sys.executable, "-m", "spo_jax.train", f"--config={config_file}", f"--out={out}", *flags]
        line += ["--config.log.checkpoint_every=1", "--config.log.sample_every=0", "--config.max_batches=6"]
        line += ["--config.log.keep_checkpoints=2"]
        running.append(subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
            process.communicate()


def rows_in(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_rows(out, count, process):
    while rows_in(out) < count:
        assert process.poll() is None, process.stderr.read()[-4000:]
        time.sleep(0.02)


def curves(out):
    rows = read_metrics(out / "metrics.jsonl")
    clock = ("seconds/", "pairs_per_second")
    return [{name: value for name, value in row.items() if not name.startswith(clock)} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, request):
    """A run that nobody disturbed; made once, by the first test that asks."""
    return tmp_path_factory.mktemp("whole") / "run"


def undisturbed(whole, started):
    if not (whole / "summary.json").exists():
        process = started(whole)
        assert process.wait(timeout=600) == 0, process.stderr.read()[-4000:]
    return whole


def assert_equal_runs(one, other):
    found, wanted = (read_file(run / "lora.safetensors") for run in (one, other))
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])
    scores = [json.loads((run / "summary.json").read_text())["scores"] for run in (one, other)]
    assert scores[0] == scores[1]
    assert curves(one) == curves(other)
    assert [row["step"] for row in curves(one)] == [1, 2, 3, 4, 5, 6]


def test_sigterm_finishes_the_batch_saves_and_exits_with_75(started, whole, tmp_path):
    out = tmp_path / "run"
    process = started(out)
    wait_for_rows(out, 2, process)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 75, log[-4000:]
    saved = max(int(path.name) for path in (out / "checkpoints").iterdir())
    assert f"stopped by SIGTERM and saved after batch {saved} of 6; --resume goes on" in log
    assert rows_in(out) == saved and not (out / "summary.json").exists()
    process = started(out, "--resume")
    assert process.wait(timeout=300) == 0, process.stderr.read()[-4000:]
    assert_equal_runs(out, undisturbed(whole, started))


@pytest.mark.parametrize("moments", [2, 20])
def test_sigkill_at_any_moment_loses_nothing_that_was_saved(started, whole, tmp_path, moments):
    """Killed again and again, from the first checkpoint on; every time `--auto-resume` goes on."""
    draw, out = random.Random(moments), tmp_path / "run"
    reached = 0
    for _ in range(moments):
        process = started(out, "--auto-resume")
        begin = rows_in(out)
        # Mostly while batches run and are saved; now and then while it starts or has finished.
        target = min(begin + draw.randint(0, 2), 6)
        wait_for_rows(out, target, process)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
        steps = [int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit()]
        assert max(steps, default=0) >= reached  # what was saved stays
        reached = max(steps, default=0)
        if reached == 6:
            break
    process = started(out, "--auto-resume")
    assert process.wait(timeout=300) == 0, process.stderr.read()[-4000:]
    assert_equal_runs(out, undisturbed(whole, started))
