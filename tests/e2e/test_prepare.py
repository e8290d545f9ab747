"""``python -m spo_jax.prepare``, as a user starts it, kills it, and starts it again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spo_jax.data.preferences.format import open_preferences

ROOT = Path(__file__).resolve().parents[2]


def test_killed_and_started_again(command, tmp_path):
    """SIGKILL while the second split is written: the first is kept, the second is made anew."""
    arguments = ["--dataset=toy", "--pairs=20", "--held-out-pairs=1500", f"--data-dir={tmp_path}/out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spo_jax.prepare", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    aside = tmp_path / "out" / ".preparing" / "validation_unique"
    until = time.monotonic() + 300
    while not aside.exists() and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "train" in names and "validation_unique" not in names
    again = command("prepare", *arguments)
    assert again.returncode == 0, again.stderr[-4000:]
    first, second = again.stdout.splitlines()
    assert first.startswith("train: 20 pairs prepared earlier, kept")
    assert second.startswith("validation_unique: 1500 pairs, 0 rows rejected")
    assert len(open_preferences(tmp_path / "out", "validation_unique")) == 1500
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "train", "validation_unique"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=toy", "--source=x", "--data-dir=out"], "--source: --dataset=toy does not take it"),
        (["--dataset=folder", "--source=x", "--seed=1", "--data-dir=out"], "--seed: --dataset=folder"),
        (["--dataset=folder", "--data-dir=out"], "--source = '': expected a folder"),
        (["--dataset=toy", "--pairs=0", "--data-dir=out"], "--pairs = 0: expected 1 to "),
        (
            ["--dataset=coyo", "--data-dir=out"],
            "--dataset = 'coyo': expected 'folder', 'pick_a_pic', 'prepared', 'prompts', 'toy', or",
        ),
        (["--dataset=toy"], "data-dir"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes(command, arguments, message):
    process = command("prepare", *arguments)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: ") and message in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
