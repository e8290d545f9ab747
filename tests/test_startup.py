"""A mistake in flags, paths or data ends a command before jax is imported, which takes seconds.

The commands are forks of one Python that has imported nothing but the modules of the commands.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.commands import ROOT

# Reads a line of JSON for each command, [name, arguments...]; answers [status, whether jax was imported, stderr].
SERVER = """
import json, os, sys, importlib

names = ("train", "sample", "export", "prepare", "convert", "evaluate_spm")
commands = {name: importlib.import_module(f"spo_jax.{name}") for name in names}
for line in iter(sys.stdin.readline, ""):
    name, *arguments = json.loads(line)
    read, write = os.pipe()
    if not os.fork():
        os.dup2(write, 2)
        sys.argv = [f"spo_jax/{name}.py", *arguments]
        status = 0
        try:
            commands[name].run()
        except SystemExit as end:
            status = end.code
        print("\\n" + json.dumps([status, "jax" in sys.modules]), file=sys.stderr, flush=True)
        os._exit(0)
    os.close(write)
    *errors, _, answer = os.fdopen(read).read().split("\\n")[:-1]
    os.wait()
    print(json.dumps([*json.loads(answer), "\\n".join(errors)]), flush=True)
"""
TOY = "--config=toy"


@pytest.fixture(scope="module")
def server():
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, text=True, **streams) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def refused(server):
    """Runs a command that is refused with one line, before jax is imported; returns the line."""

    def run(*words):
        server.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        server.stdin.flush()
        status, has_jax, stderr = json.loads(server.stdout.readline())
        assert (status, stderr.count("error: "), stderr.count("\n")) == (2, 1, 0), stderr
        assert not has_jax, stderr
        return stderr.removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "--config=toyx"], "--config=toyx: no such file"),
        (["train", TOY, "--config.spo.bta=3"], "--config has no field spo.bta"),
        (["train", TOY, "--config.spo.beta=-3"], "config field spo.beta = -3.0"),
        (["train", TOY, "--config.method=spoo"], "config field method = 'spoo'"),
        (["train", TOY, "--config.prompts=absent.txt"], "no prompt file absent.txt"),
        (["train", TOY, "--config.eval.prompts=absent.txt"], "no prompt file absent.txt"),
        (["train", "--config=finetune_toy", "--config.images=absent"], "no folder absent"),
        (["train", "--config=spm_toy", "--config.data_dir=absent"], "absent"),
        (["sample", "--prompts=absent.txt"], "no prompt file absent.txt"),
        (["sample"], "give either --prompt=TEXT or --prompts=FILE"),
        (["sample", "--prompt=a", "--crop=1"], "--crop=1: expected"),
        (["sample", "--prompt=a", "--steps=none"], "steps"),
        (["export", "--run=absent", "--out=lora.bin"], "--out=lora.bin: the name of a LoRA file"),
        (["prepare", "--dataset=absent", "--data-dir=absent"], "--dataset = 'absent'"),
        (["convert", "--spm=toy", f"--out={ROOT}"], f"{ROOT} exists already"),
        (["evaluate_spm", TOY, "--spm=toy"], "--config: expected one of method 'spm'"),
        (["evaluate_spm", "--config=spm_toy", "--spm=toy", "--config.data_dir=absent"], "absent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_a_command_before_jax_is_imported(refused, words, part):
    assert part in refused(*words)
