"""A user's mistake is one line and status 2; a fault of ours keeps its traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
COMMAND = """
import sys
from absl import flags
from spo_jax.core.cli import define_config, run_command
from spo_jax.core.errors import Preempted, UserError

config = define_config()
act = flags.DEFINE_string("act", "", "What happens.")

def main(_):
    if act.value == "mistake":
        raise UserError("no such star:\\n  red")
    if act.value == "fault":
        raise ValueError("ours")
    if act.value == "preempted":
        raise Preempted("saved")
    if act.value == "interrupt":
        raise KeyboardInterrupt
    print(config.value.size, config.value.inner.rate)

run_command(main)
"""
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    config = ConfigDict({"size": 3, "inner": {"rate": 0.5}})
    LINE
    return config
"""


@pytest.fixture
def command(tmp_path):
    """Runs the command in a folder with ``good.py``; gives (status, stdout, stderr)."""
    (tmp_path / "good.py").write_text(CONFIG.replace("LINE", ""))
    (tmp_path / "command.py").write_text(COMMAND)

    def run(*arguments):
        child = subprocess.run(
            [sys.executable, "command.py", *arguments], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT
        )
        return child.returncode, child.stdout, child.stderr

    return run


def assert_one_line(result, *parts):
    status, _, stderr = result
    assert status == 2, stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    for part in parts:
        assert part in stderr


def test_done(command):
    status, stdout, _ = command("--config=good.py", "--config.inner.rate=2", "--config.size=4")
    assert (status, stdout) == (0, "4 2.0\n")


def test_help_is_about_this_command(command):
    status, stdout, _ = command("--help")
    assert status == 0 and "--act: What happens." in stdout and "--config: Config file" in stdout
    assert "--logtostderr" not in stdout


def test_preempted(command):
    status, _, stderr = command("--config=good.py", "--act=preempted")
    assert (status, stderr) == (75, "saved\n")


def test_a_mistake(command):
    assert_one_line(command("--config=good.py", "--act=mistake"), "error: no such star: red\n")


def test_a_fault_and_an_interruption(command):
    status, _, stderr = command("--config=good.py", "--act=fault")
    assert status == 1 and "Traceback" in stderr and "ValueError: ours" in stderr
    status, _, stderr = command("--config=good.py", "--act=interrupt")
    assert (status, stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--cofnig=good.py"], ["flag 'cofnig'"]),
        (["--config=good.py", "star"], ["unexpected argument 'star'"]),
        ([], ["--config must have a value"]),
        (["--config=absent.py"], ["--config=absent.py: no such file"]),
        (["--config=absent.py", "--config.size=3"], ["--config=absent.py: no such file"]),
        (["--config=good.py", "--config.sise=3"], ["--config has no field sise: did you mean size?"]),
        (["--config=good.py", "--config.iner.rate=3"], ["no field iner.rate: did you mean inner.rate?"]),
        (["--config=good.py", "--config.rate=3"], ["--config has no field rate: did you mean inner.rate?"]),
        (["--config=good.py", "--config.xyzzy=3"], ["--config has no field xyzzy\n"]),
        (["--config=good.py", "--config.size=big"], ["--config.size=big", "'big'"]),
        (["--config=good.py", "--config.inner=3"], ["--config.inner=3", "not a dict"]),
    ],
    ids=" ".join,
)
def test_wrong_flags(command, arguments, parts):
    assert_one_line(command(*arguments), *parts)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("config.size = 'big'", ["line 7: TypeError", "'size'"]),
        ("config.size = int('big')", ["line 7: ValueError", "'big'"]),
        ("config.sise += 1", ["line 7: AttributeError", "sise"]),
        ("config.size = = 1", ["SyntaxError", "line 7"]),
        ("config = open('absent')", ["line 7: FileNotFoundError", "absent"]),
        ("return", ["returned nothing"]),
    ],
)
def test_faulty_config_files(command, tmp_path, line, parts):
    (tmp_path / "bad.py").write_text(CONFIG.replace("LINE", line))
    status, _, stderr = command("--config=bad.py")
    last = stderr.splitlines()[-1]
    assert status == 2 and "Traceback" not in stderr
    assert last.startswith("error: --config=bad.py: ")
    for part in parts:
        assert part in last
