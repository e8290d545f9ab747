"""A mistake in flags, paths or data ends a command before jax is imported, which takes seconds.

The commands are forks of one Python that has imported nothing but the modules of the commands. They are called as the
scripts call them that pip installs.
"""

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from spo_jax import toy
from spo_jax.core.files import write_json
from spo_jax.weights import store
from tests.support.commands import ROOT

ASSETS = toy.ASSETS
# Reads a line of JSON for each command, [name, arguments...]; answers [status, whether jax was imported,
# the folder of compiled programs, output].
SERVER = """
import json, os, sys, importlib

names = ("train", "sample", "export", "evaluate", "prepare", "demo", "convert", "evaluate_spm", "doctor", "train_spm")
commands = {name: importlib.import_module(f"spo_jax.{name}") for name in names}
for line in iter(sys.stdin.readline, ""):
    name, *arguments = json.loads(line)
    read, write = os.pipe()
    if not os.fork():
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.argv = [f"/bin/spo-jax-{name.replace('_', '-')}", *arguments]
        status = 0
        try:
            commands[name].run()
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
        programs = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        print("\\n" + json.dumps([status, "jax" in sys.modules, programs]), file=sys.stderr, flush=True)
        os._exit(0)
    os.close(write)
    *output, _, answer = os.fdopen(read).read().split("\\n")[:-1]
    os.wait()
    print(json.dumps([*json.loads(answer), "\\n".join(output)]), flush=True)
"""
TOY = "--config=toy"


@pytest.fixture(scope="module")
def server():
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/home/somebody"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, text=True, **streams) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def script(server):
    """Runs a command that ends before jax is imported; returns its status and its output."""

    def run(*words):
        server.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        server.stdin.flush()
        status, has_jax, run.programs, output = json.loads(server.stdout.readline())
        assert not has_jax, output
        return status, output

    return run


@pytest.fixture
def refused(script):
    """Runs a command that is refused with one line, before jax is imported; returns the line."""

    def run(*words):
        status, output = script(*words)
        run.programs = script.programs
        assert (status, output.count("error: "), output.count("\n")) == (2, 1, 0), output
        return output.removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("train", ["config", "out", "resume", "help-config"]),
        ("sample", ["model", "lora", "prompt", "out"]),
        ("export", ["run", "format", "out"]),
        ("evaluate", ["model", "lora", "merged", "images", "protocol", "rewards", "out"]),
        ("prepare", ["dataset", "source", "data-dir"]),
        ("demo", ["model", "runs", "out", "port"]),
        ("convert", ["spm", "out", "dtype"]),
        ("evaluate_spm", ["config", "spm", "plain", "out"]),
        ("doctor", ["run", "model", "json"]),
    ],
)
def test_help_of_a_script_is_that_of_the_command(script, name, flags):
    status, output = script(name, "--help")
    first, _, *rest = output.split("\n")
    assert status == 0 and first.startswith(f"Example: python -m spo_jax.{name}")
    doc = importlib.import_module(f"spo_jax.{name}").__doc__.replace("``", "")
    assert "\n".join(rest).split("\n\nFlags:")[0] == doc.strip().replace(f": {first.removeprefix('Example: ')}.", ".")
    for flag in flags:
        assert f"--{flag}: " in output or f"--[no]{flag}: " in output
    assert "--logtostderr" not in output


def test_a_script_that_was_renamed(refused):
    assert refused("train_spm", "--help") == "python -m spo_jax.train_spm is now python -m spo_jax.train"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train"], "--config is missing, for example --config=configs/toy.py"),
        (["train", "--config=toyx"], "--config=toyx: no such file"),
        (["train", f"--config={ROOT}"], f"--config={ROOT}: a folder; expected a file, or a name: "),
        (["train", f"--config={ROOT}/README.md"], "README.md: expected a Python file with a function get_config()"),
        (["train", TOY, "--num-processes=3"], "--coordinator-address, --num-processes and --process-id belong"),
        (["train", TOY, "--out=/proc/run"], "cannot write to /proc/run"),
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
        (["sample", "--prompt=a", "--init-latents=absent.npy"], "cannot read initial latents from absent.npy"),
        (["sample", f"--prompts={ROOT}"], f"{ROOT} is a folder: expected a prompt file"),
        (["sample", "--prompt=a", "--steps=none"], "steps"),
        (["sample", "--prompt=a", "--out=/proc/images"], "cannot write to /proc/images"),
        (["sample", "--prompt=a", "--model", "embedded"], "'embedded' is now 'toy'"),
        (["export"], "--run is missing: Export this run folder, checkpoint folder, or LoRA file."),
        (["export", "--run=absent", "--out=/proc/a/lora.safetensors"], "cannot write to /proc/a"),
        (["export", "--run=absent", "--out=lora.bin"], "--out=lora.bin: the name of a LoRA file"),
        (["evaluate"], "--out is missing: Keep images, scores and results in this folder"),
        (["evaluate", "--out=o", "--lora=spo"], "--lora=spo: expected NAME=SOURCE, such as --lora=spo=runs/spo"),
        (["evaluate", "--out=o", "--lora=base=a"], "two contestants have the name base, which is the model itself"),
        (["evaluate", "--out=o", "--lora=a/b=c"], "--lora=a/b=c: 'a/b' is no name of a contestant: expected"),
        (["evaluate", "--out=o", "--lora=a=b", "--merged=A=c"], "two contestants have the name a: give each"),
        (["evaluate", "--out=o", "--lora=spo=absent"], "--lora spo: no such file or folder: absent"),
        (["evaluate", "--out=o", "--merged=a=absent"], "--merged a: no such file or folder: absent"),
        (["evaluate", "--out=o", "--images=a=absent"], "--images a: no folder absent: expected one with an image for"),
        (["evaluate", "--out=o", f"--images=a={ROOT}"], "--images a: prompt 0 ('"),
        (["evaluate", "--out=o", "--strengths=0.5"], "--strengths goes with --lora=NAME=SOURCE only"),
        (["evaluate", "--out=o", "--strengths=a"], "--strengths=a: expected numbers separated by commas"),
        (["evaluate", "--out=o", "--lora=a=b:0"], "--lora=a: strength=0: expected a strength other than 0"),
        (["evaluate", "--out=o", "--protocol=spoo"], "--protocol=spoo: expected"),
        (["evaluate", "--out=o", "--protocol=spo"], "the prompts of protocol spo are not in"),
        (["evaluate", "--out=o", "--prompts=absent.txt"], "no prompt file absent.txt"),
        (["evaluate", "--out=o", "--model=a/b"], "give --protocol=NAME ("),
        (["evaluate", "--out=o", "--model=a/b", "--prompts=toy:train"], "--rewards is missing"),
        (["evaluate", "--out=o", "--rewards=absent"], "--rewards = 'absent': expected"),
        (["evaluate", "--out=o", "--rewards=toy,toy"], "--rewards=toy,toy: toy is there twice"),
        (["evaluate", "--out=o", "--weights=1"], "--weights = '1': 1 weight for 2 rewards (toy, spm:toy)"),
        (["evaluate", "--out=o", "--limit=0"], "--limit=0: expected a number from 1"),
        (["evaluate", "--out=/proc/out"], "cannot write to /proc/out"),
        (["evaluate", f"--out={ROOT}"], "holds something else than an evaluation: choose another folder"),
        (["evaluate", f"--out={ROOT}/README.md"], "README.md is a file: expected a folder"),
        (["prepare", "--dataset=absent", "--data-dir=absent"], "--dataset = 'absent'"),
        (["prepare", "--dataset=toy", "--data-dir=/proc/data"], "cannot write to /proc/data"),
        (
            ["prepare", "--dataset=toy", "--data-dir=absent", "--filter=toy"],
            "--filter: 'toy' is no condition: expected",
        ),
        (["prepare", "--dataset=toy", "--data-dir=absent", "--filter="], "--filter is empty: expected REWARD=GAP"),
        (["prepare", "--dataset=toy", "--data-dir=absent", "--filter=absent=0"], "--filter = 'absent': expected '"),
        (["prepare", "--dataset=toy", "--data-dir=absent", "--filter-ties=lrm:a=1"], "this reward reads noisy latents"),
        (
            ["prepare", "--dataset=toy", "--data-dir=absent", "--filter=aesthetic:absent=0"],
            "absent",
        ),
        (
            ["prepare", "--dataset=toy", "--data-dir=absent", "--filter-resolution=64"],
            "goes with --filter or --filter-",
        ),
        (
            ["prepare", "--dataset=prepared", "--source=absent", "--data-dir=absent"],
            "--source=absent holds no prepared",
        ),
        (
            ["prepare", "--dataset=prompts", "--source=a", "--data-dir=absent", "--filter=lpo"],
            "because it has no pairs",
        ),
        (["demo", "--port=0"], "--port=0: 0 is not an integer in the range [1, 65535]"),
        (["demo", "--host=1.2.3.4"], "cannot listen at --host=1.2.3.4 --port=7860"),
        (["demo", "--judge=absent"], "--judge = 'absent': expected"),
        (["demo", "--lora=absent"], "no such file or folder: absent"),
        (["demo", "--prompts=absent.txt"], "no prompt file absent.txt"),
        (["demo", "--out=/proc/votes"], "cannot write to /proc/votes"),
        (["demo", f"--runs={ROOT}/README.md"], "README.md is a file: expected a folder of runs"),
        (["doctor", "--run=absent"], "--run=absent: no run here (no such file"),
        (["doctor", "--model=absent"], "absent"),
        (["doctor", "--run="], "--run is empty: expected the folder of a run, or no --run to look at"),
        (["doctor", "--config=sd15"], "--config is about a model: expected --model as well"),
        (["doctor", "--compile", "--run=runs/toy"], "--compile is about a model: expected --model as well"),
        (["convert", "--spm=toy", f"--out={ROOT}"], f"{ROOT} exists already"),
        (["convert", "--spm=toy", "--out=/proc/spm"], "cannot write to /proc"),
        (["evaluate_spm", "--spm=toy"], "--config is missing, for example --config=configs/spm_toy.py"),
        (["evaluate_spm", TOY, "--spm=toy"], "--config: expected one of method 'spm'"),
        (["evaluate_spm", "--config=spm_toy", "--spm=toy", "--out=/proc/out"], "cannot write to /proc/out"),
        (["evaluate_spm", "--config=spm_toy", "--spm=toy", "--config.data_dir=absent"], "absent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_a_command_before_jax_is_imported(refused, words, part):
    assert part in refused(*words)


@pytest.mark.parametrize("words", [
    ["train", TOY, "--config.prompts=absent.txt"], ["sample"], ["export", "--run=absent", "--out=absent/a.safetensors"],
    ["evaluate", "--out=o", "--lora=spo"], ["prepare", "--dataset=absent", "--data-dir=absent"],
    ["demo", "--judge=absent"], ["evaluate_spm", TOY, "--spm=toy"], ["convert", "--spm=absent", "--out=absent"],
    ["doctor", "--run=absent"],
], ids=lambda words: words[0])  # fmt: skip
def test_what_a_command_compiles_is_kept(refused, words):
    refused(*words)
    assert refused.programs == "/home/somebody/.cache/spo_jax/xla"


# Something else than a model where a model is due


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A LoRA, the folder of a run, and a checkpoint in one file with the names and the width of the toy."""
    folder = tmp_path_factory.mktemp("things")
    store.write_state(folder / "lora.safetensors", {"unet.mid.to_q.lora_A.weight": np.ones((2, 2), np.float32)})
    (folder / "run" / "checkpoints" / "5").mkdir(parents=True)
    (folder / "run" / "spm").mkdir()
    write_json(folder / "run" / "summary.json", {})
    (folder / "empty").mkdir()
    whole = {
        "model.diffusion_model.input_blocks.1.1.attn2.to_k.weight": np.ones((8, 96), np.float32),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": np.ones(96, np.float32),
    }
    store.write_state(folder / "whole.safetensors", whole)
    return folder


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", TOY, "--config.model={}/lora.safetensors"], "{}/lora.safetensors is a LoRA, which spo_jax.sample"),
        (
            ["train", TOY, "--config.model={}/run"],
            "{}/run is the folder of a run, whose preference model is {}/run/spm",
        ),
        (["train", TOY, "--config.model={}/empty"], "{}/empty is an empty folder: no model_index.json here"),
        (["train", TOY, f"--config.model={ASSETS}/spm"], "/spm is a CLIP or preference model: no model_index.json"),
        (["train", TOY, "--config.model=runs/absent"], "no such file or folder: runs/absent"),
        (["train", TOY, "--config.model={}/whole.safetensors"], "96 wide instead of 768: set base to the folder"),
        (["train", TOY, "--config.model={}/whole.safetensors"], "or to toy if it was that"),
        (
            ["train", TOY, "--config.model={}/whole.safetensors", "--config.base={}/empty"],
            "{}/empty: no model_index.json here",
        ),
        (["train", TOY, "--config.vae={}/empty"], "vae = '{}/empty' is an empty folder: expected an autoencoder's"),
        (["train", TOY, "--config.spm.model={}/lora.safetensors"], "lora.safetensors is a LoRA: expected a preference"),
        (["train", TOY, "--config.spm.model={}/run"], "{}/run is the folder of a run, whose preference model is"),
        (["train", TOY, "--config.spm.model=runs/absent"], "no such file or folder: runs/absent"),
        (["train", "--config=toy_hacked"], "--config.spm.model=runs/few_spm/spm: no such file or folder: runs/few_spm"),
        (["train", TOY, "--config.spm.model={}/run/absent.bin"], "no such file or folder: {}/run/absent.bin"),
        (["train", TOY, "--config.spo.reward=toy"], "spo.reward = 'toy': this reward is computed on the host"),
        (
            ["train", "--config=lpo_toy", "--config.spo.second_reward=toy"],
            "spo.second_reward = 'toy': this reward is comp",
        ),
        (["train", TOY, "--config.spo.second_reward=spm"], "spo.second_reward = 'spm': expected none for spo.judged ="),
        (["train", TOY, "--config.spo.reward=absent"], "config field spo.reward = 'absent': expected '"),
        (["train", TOY, "--config.eval.rewards=toy,absent"], "config field eval.rewards = 'absent'"),
        (["train", TOY, "--config.eval.rewards=pickscore:{}/empty"], "{}/empty is an empty folder: expected a pref"),
        (["train", TOY, "--config.eval.rewards=toy,clip_score@hessl"], "'clip_score@hessl': expected clip_score, clip"),
        (
            ["train", TOY, "--config.eval.rewards=aesthetic:{}/empty"],
            "{}/empty: expected one file with the head of the",
        ),
        (["train", TOY, "--config.eval.rewards=spm@1000:toy"], "expected spm@T with a whole number T from 0 to 999"),
        (["train", TOY, "--config.spo.decoder={}/empty"], "spo.decoder = '{}/empty' is an empty folder"),
        (["train", TOY, "--out={}/run"], "{}/run already holds a run: pass --resume to continue it"),
        (["train", TOY, "--out={}/empty", "--resume"], "--resume: no checkpoint in {}/empty/checkpoints"),
        (["train", "--config=spm_toy", "--config.init={}/lora.safetensors"], "{}/lora.safetensors is a LoRA"),
        (["train", "--config=finetune_toy", "--config.model={}/empty"], "{}/empty is an empty folder"),
        (["sample", "--prompt=a", "--model={}/lora.safetensors"], "{}/lora.safetensors is a LoRA"),
        (["sample", "--prompt=a", "--model={}/run"], "{}/run is the folder of a run"),
        (["sample", "--prompt=a", "--model={}/whole.safetensors"], "set base to the folder or hub id"),
        (["demo", "--model={}/run"], "{}/run is the folder of a run"),
        (["sample", "--prompt=a", "--base=toy"], "has its own tokenizer and scheduler: remove base = 'toy'"),
        (["export", "--run={}/absent", "--out={}/out.safetensors"], "--run={}/absent: no run here (no such file"),
        (["export", "--run={}/empty", "--out={}/out.safetensors"], "no run here, this is an empty folder (expected"),
        (["export", "--run={}/whole.safetensors", "--out={}/out.safetensors"], "is a checkpoint of a diffusion model"),
        (["export", "--run={}/run", "--model={}/empty", "--out={}/out.safetensors"], "{}/empty is an empty folder"),
        (["convert", "--spm={}/lora.safetensors", "--out={}/spm"], "lora.safetensors is a LoRA: expected a preference"),
        (["evaluate_spm", "--config=spm_toy", "--spm={}/run", "--out={}/out"], "{}/run is the folder of a run"),
        (["evaluate_spm", "--config=spm_toy", "--spm=toy", "--plain={}/empty", "--out={}/out"], "is an empty folder"),
    ],
    ids=lambda value: " ".join(value).replace("{}/", "") if isinstance(value, list) else "",
)
def test_what_is_no_model_is_named(refused, things, words, part):
    before = sorted(things.rglob("*"))
    words = [word.format(things) if "{}" in word else word for word in words]
    assert part.replace("{}", str(things)) in refused(*words)
    assert sorted(things.rglob("*")) == before
