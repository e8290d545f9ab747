"""A user's mistake is one line and status 2; a fault of the program keeps its traceback.

The commands here are forks of one process that has imported what they need, because importing takes most of their time.
"""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from spo_jax.core.cli import callable_module

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
COMMAND = """
import ctypes, signal, sys
from absl import flags
from spo_jax.core import signals
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import Interrupted, Preempted, UserError

config = define_config()
act = flags.DEFINE_string("act", "", "What happens.")
flags.DEFINE_bool("resume", False, "Continue.")

def main(_):
    if act.value == "mistake":
        raise UserError("no such star:\\n  red")
    if act.value == "fault":
        raise ValueError("ours")
    if act.value == "preempted":
        raise Preempted("saved")
    if act.value == "saved":
        raise Interrupted("saved")
    if act.value == "interrupt":
        raise KeyboardInterrupt
    if act.value == "stuck":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run in the background
        if config.value.size == 2:
            signals._GRACE = 600
        print("stuck", flush=True)
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second time it waits for itself
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    print(config.value.size, config.value.inner.rate)

run_command(main)
"""
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    config = ConfigDict({"size": 3, "inner": {"rate": 0.5}, "model": "toy", "optimizer": {"warmup_steps": 0}})
    LINE
    return config
"""
# Reads a line of JSON for each command, [folder, arguments...], and prints the exit status of its fork.
SERVER = """
import json, os, runpy, sys
import spo_jax.core.cli

for line in iter(sys.stdin.readline, ""):
    folder, *arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.argv = ["command.py", *arguments]
        runpy.run_path("command.py", run_name="__main__")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server():
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, env=ENVIRONMENT, text=True, **streams) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def command(server, tmp_path):
    """Runs the command in a folder with ``good.py``; gives (status, stdout, stderr)."""
    (tmp_path / "good.py").write_text(CONFIG.replace("LINE", ""))
    (tmp_path / "command.py").write_text(COMMAND)

    def run(*arguments):
        server.stdin.write(json.dumps([str(tmp_path), *arguments]) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return status, (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()

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


def test_a_python_of_its_own_does_the_same(command, tmp_path):
    line = [sys.executable, "command.py", "--config=good.py", "--config.sise=4"]
    child = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert (child.returncode, child.stdout, child.stderr) == command("--config=good.py", "--config.sise=4")


def test_the_reader_of_the_help_may_end_first(command, tmp_path):
    """As in ``--help | head``: nobody reads, and the pipe is closed before the command writes to it."""
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "command.py", "--help"]
    child = subprocess.run(line, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    os.close(writing)
    assert (child.returncode, child.stderr) == (0, "")


def test_help_is_about_this_command(command):
    status, stdout, _ = command("--help")
    assert status == 0 and "--act: What happens." in stdout and "--config: Read the settings" in stdout
    assert "--logtostderr" not in stdout


def test_preempted(command):
    status, _, stderr = command("--config=good.py", "--act=preempted")
    assert (status, stderr) == (75, "saved; to resume: python command.py --config=good.py --act=preempted --resume\n")


def test_interrupted_and_saved(command):
    """The command to resume is the same one; it has --resume once, and what a shell would change is quoted."""
    status, _, stderr = command("--config=good.py", "--act=saved", "--resume", "--config.model=a b")
    assert status == 130
    assert stderr == "saved; to resume: python command.py --config=good.py --act=saved --resume '--config.model=a b'\n"


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_command_that_does_not_return_to_python(command, tmp_path, times):
    """As it would be inside of a program of XLA; a second Ctrl-C does not wait for the first."""
    line = [sys.executable, "command.py", "--config=good.py", "--act=stuck", f"--config.size={times}"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=tmp_path, env=ENVIRONMENT, text=True, **streams) as process:
        assert process.stdout.readline() == "stuck\n"
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "interrupted\n")


def test_a_mistake(command):
    assert_one_line(command("--config=good.py", "--act=mistake"), "error: no such star: red\n")


def test_a_fault_and_an_interruption(command):
    status, _, stderr = command("--config=good.py", "--act=fault")
    assert status == 1 and "Traceback" in stderr and "ValueError: ours" in stderr
    status, _, stderr = command("--config=good.py", "--act=interrupt")
    assert (status, stderr) == (130, "interrupted\n")


def test_a_command_says_what_an_interruption_means(command, tmp_path):
    script = tmp_path / "command.py"
    script.write_text(COMMAND.replace("run_command(main)", "run_command(main, interrupted='start it again')"))
    status, _, stderr = command("--config=good.py", "--act=interrupt")
    assert (status, stderr) == (130, "start it again\n")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--cofnig=good.py"], ["error: unknown flag --cofnig: did you mean --config? (--help lists the flags)"]),
        (["--config=good.py", "--cofnig.size=3"], ["error: unknown flag --cofnig.size: did you mean --config.size? ("]),
        (["--config=good.py", "--xyzzy=3"], ["error: unknown flag --xyzzy (--help lists the flags)"]),
        (["--config=good.py", "star"], ["unexpected argument 'star'"]),
        ([], ["error: --config is missing, for example --config=configs/toy.py (--help"]),
        (["--config=absent.py"], ["--config=absent.py: no such file; expected a file, or a name: ", "sd15, "]),
        (["--config=absent.py", "--config.size=3"], ["--config=absent.py: no such file"]),
        (["--config=sd"], ["--config=sd: no such file; expected a file, or a name: "]),
        (["--config=good.py", "--config.sise=3"], ["--config has no field sise: did you mean size?"]),
        (["--config=good.py", "--config.iner.rate=3"], ["no field iner.rate: did you mean inner.rate?"]),
        (["--config=good.py", "--config.rate=3"], ["--config has no field rate: did you mean inner.rate?"]),
        (["--config=good.py", "--config.xyzzy=3"], ["--config has no field xyzzy: --help-config lists all fields\n"]),
        (["--config.size=3"], ["--config.size needs a config, for example --config="]),
        (["--config=good.py", "--inner.rate=3"], ["unknown flag --inner.rate: did you mean --config.inner.rate?"]),
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


# Names of earlier versions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=tiny"], "--config=tiny is now --config=toy"),
        (["--config=configs/spm_tiny.py"], "--config=configs/spm_tiny.py is now --config=configs/spm_toy.py"),
        (
            ["--config=good.py", "--config.model=embedded"],
            "--config.model=embedded: 'embedded' is now 'toy', expected --config.model=toy",
        ),
        (
            ["--config=good.py", "--config.model", "embedded"],
            "--config.model: 'embedded' is now 'toy', expected --config.model=toy",
        ),
        (
            ["--config=good.py", "--config.eval.reward=scenes"],
            "--config.eval.reward=scenes: 'scenes' is now 'toy', expected --config.eval.rewards=toy",
        ),
        (
            ["--config=good.py", "--config.prompts=embedded:train"],
            "--config.prompts=embedded:train: 'embedded:train' is now 'toy:train', expected --config.prompts=toy:train",
        ),
        (
            ["--config=good.py", "--config.spo.warmup_steps=3"],
            "--config.spo.warmup_steps is now --config.optimizer.warmup_steps",
        ),
        # The new name is not a field of this config either, so it is not suggested.
        (
            ["--config=good.py", "--config.log.sample_every=3"],
            "--config has no field log.sample_every: --help-config lists all fields",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_renamed_values_fields_and_files(command, arguments, message):
    assert_one_line(command(*arguments), f"error: {message}\n")


def test_other_flags_files_and_folders_may_have_such_names(command, tmp_path):
    (tmp_path / "embedded").write_text("")
    status, stdout, _ = command("--config=good.py", "--config.model=embedded", "--act=scenes")
    assert (status, stdout) == (0, "3 0.5\n")
    assert_one_line(command("--config=mine/tiny.py"), "error: --config=mine/tiny.py: no such file; expected a file")


def test_renamed_commands():
    """Both are started at the same time, in a Python each: forks would not show the import of the package."""
    commands = ", ".join(f"spo_jax.build_toy.{name}" for name in ("build", "gates", "toy_sdxl"))
    expected = {
        "train_spm": "error: python -m spo_jax.train_spm is now python -m spo_jax.train\n",
        "embedded.build": f"error: spo_jax.embedded is now spo_jax.build_toy, with the commands {commands}\n",
    }
    processes = {
        name: subprocess.Popen([sys.executable, "-m", f"spo_jax.{name}"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name in expected
    }
    for name, process in processes.items():
        _, stderr = process.communicate()
        assert (process.returncode, stderr) == (2, expected[name])


# Modules that can be called


def test_a_module_can_be_called(monkeypatch):
    module = types.ModuleType("some_module", "What it does.")
    module.constant = 3
    monkeypatch.setitem(sys.modules, "some_module", module)
    callable_module("some_module", lambda *args, **kwargs: (args, kwargs))
    assert module(1, two=2) == ((1,), {"two": 2})
    assert isinstance(module, types.ModuleType) and (module.constant, module.__doc__) == (3, "What it does.")


def test_a_notebook_shows_the_signature_and_the_help_of_the_function(monkeypatch):
    def call(first: int, *, second: str = "b") -> float:
        """Does something."""

    module = types.ModuleType("some_module", "The text of --help.")
    monkeypatch.setitem(sys.modules, "some_module", module)
    callable_module("some_module", call)
    assert inspect.signature(module) == inspect.signature(call) == inspect.signature(module.__call__)
    shell = InteractiveShell()
    shell.user_ns["module"] = module
    shown = shell.object_inspect("module")  # what ``module?`` shows
    assert shown["docstring"] == "Does something." and not shown["call_docstring"]
