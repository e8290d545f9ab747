"""What a newcomer tries first: configs by name, from any folder, and the lists of flags and fields."""

import re
import shlex

import pytest

from spo_jax.core.config import describe
from spo_jax.methods import default_config, read_settings

COMMANDS = (
    "train", "sample", "export", "evaluate", "prepare", "demo", "convert", "evaluate_spm", "doctor",
    "build_toy.toy_sdxl", "build_toy.people", "build_toy.people_accuracy", "build_toy.clip",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_flag(succeed, name):
    shown = succeed(name, "--help").stdout
    assert f"python -m spo_jax.{name}" in shown
    listed = re.findall(r"^  --(\S+):\s*(\S*)", shown, re.M)
    assert len(listed) >= 2 and all(text for _, text in listed)


def example(succeed, name):
    """The flags of the example that the help of a command begins with."""
    first = succeed(name, "--help").stdout.split("\n")[0]
    program = f"Example: python -m spo_jax.{name}"
    assert first.startswith(program)
    return shlex.split(first.removeprefix(program))


@pytest.mark.parametrize(("name", "made"), [("convert", "exports/spm/config.json"), ("doctor", "")])
def test_examples_work_as_they_stand(succeed, tmp_path, name, made):
    done = succeed(name, *example(succeed, name), cwd=tmp_path)
    assert (tmp_path / made).exists() and "\x1b" not in done.stdout + done.stderr


@pytest.mark.slow
def test_examples_work_one_after_the_other(succeed, tmp_path):
    """Those of export, evaluate and evaluate_spm read what those of train and prepare write."""
    for name in ("train", "export", "sample", "evaluate", "prepare", "evaluate_spm"):
        succeed(name, *example(succeed, name), cwd=tmp_path)
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 8


def test_a_pipe_gets_the_result_alone(succeed, tmp_path):
    done = succeed("convert", "--spm=toy", f"--out={tmp_path}/spm")
    assert done.stdout == f"wrote {tmp_path}/spm\n" and "reading toy" in done.stderr


@pytest.mark.parametrize(("config", "method"), [("toy", "spo"), ("spm_toy", "spm")])
def test_help_config_lists_every_field_with_its_meaning(succeed, tmp_path, config, method):
    """The config is found by its name from any folder, and nothing is run."""
    lines = succeed("train", f"--config={config}", "--help-config", f"--out={tmp_path}/run", cwd=tmp_path).stdout
    lines = lines.splitlines()
    fields = re.findall(r"^--config\.([\w.]+)=", "\n".join(lines), re.M)
    assert fields == [name for name, *_ in describe(read_settings(default_config(method)))]
    assert all(line.startswith("    ") and len(line.split()) > 1 for line in lines[1::2])
    assert not list(tmp_path.iterdir())
    changed = next(line for line in lines if line.startswith("--config.log.checkpoint_every="))
    assert re.search(r"=\d+  int; 0 to 1000000000 \(default \d+\)$", changed)


def test_help_config_shows_an_override(succeed, tmp_path):
    flags = ("--config=toy", "--config.spo.beta=5", "--help-config")
    shown = succeed("train", *flags).stdout
    assert "--config.spo.beta=5.0  float; more than 0, at most 1000000 (default 10.0)" in shown


def test_a_config_by_name_takes_files_of_the_current_folder(command, tmp_path):
    """The config lies with the package; paths in flags are relative to the folder that the command is started in."""
    (tmp_path / "prompts.txt").write_text("")
    process = command("train", "--config=toy", "--config.prompts=prompts.txt", "--out=run", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: prompts.txt holds no prompts")
    assert not (tmp_path / "run").exists()
