"""``python -m spo_jax`` lists the commands, all of them."""

import subprocess
import sys

from tests.support.commands import ROOT


def test_every_command_is_listed():
    done = subprocess.run([sys.executable, "-m", "spo_jax"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    old = {"__main__", "embedded", "train_spm"}  # names that commands had before
    for path in (ROOT / "spo_jax").glob("*.py"):
        if path.stem not in {"__init__", *old}:
            assert f"python -m spo_jax.{path.stem} " in done.stdout
