"""The quickstart gives the right commands to a stand-in for Python, which installs and trains nothing."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.commands import ROOT

TRAIN = "python -m spo_jax.train"


@pytest.fixture
def quickstart(play) -> SimpleNamespace:
    """Returns ``run(*flags)``, which returns the standard output and the commands that were given to Python.

    ``try_to(*flags)`` returns the finished process instead.
    """
    play.fake_python("exit 0")
    environment = play.folder / "venv"
    environment.mkdir()

    def try_to(*flags: str) -> subprocess.CompletedProcess:
        return play.run("quickstart.sh", *flags, VIRTUAL_ENV=str(environment))

    def run(*flags: str) -> tuple[str, list[str]]:
        before = len(play.calls())
        done = try_to(*flags)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout, [call for call in play.calls()[before:] if call.startswith("python -m spo_jax")]

    return SimpleNamespace(run=run, try_to=try_to)


def test_the_quickstart_trains_the_toy_and_names_its_results(quickstart):
    printed, calls = quickstart.run("--config.seed=1")
    assert calls == [f"{TRAIN} --config=configs/toy.py --config.seed=1 --out=runs/quickstart"]
    last = printed[printed.index("Done.") :]
    for name in ("report.html", "before_after.png", "lora.safetensors", "summary.json"):
        assert f"runs/quickstart/{name}" in last


@pytest.mark.parametrize("config", ["configs/toy_sdxl.py", "toy_sdxl"])
def test_the_toy_sdxl_is_built_only_once_and_has_a_folder_of_its_own(config, quickstart, checkout):
    train = f"{TRAIN} --config={config} --out=runs/quickstart_sdxl"
    toy = _make_run(checkout)
    printed, calls = quickstart.run(f"--config={config}")
    assert calls == ["python -m spo_jax.build_toy.toy_sdxl --out=build/toy_sdxl", train]
    assert "Open runs/quickstart_sdxl/report.html" in printed and "images are noise" in printed
    (checkout / "build" / "toy_sdxl").mkdir(parents=True)
    _, calls = quickstart.run(f"--config={config}")
    assert calls == [train]
    assert (toy / "summary.json").exists()


def test_a_folder_of_the_users_own_is_given_on_and_never_moved(quickstart, checkout):
    run = _make_run(checkout, "mine")
    printed, calls = quickstart.run("--out=runs/mine")
    assert calls == [f"{TRAIN} --config=configs/toy.py --out=runs/mine"]
    assert "Open runs/mine/report.html" in printed
    assert (run / "summary.json").exists()


@pytest.mark.parametrize("flags", [["--out", "runs/mine"], ["--config="]])
def test_a_flag_without_its_value_is_refused(flags, quickstart, play):
    done = quickstart.try_to(*flags)
    name = flags[0].rstrip("=")
    assert (done.returncode, done.stderr) == (2, f"error: {flags[0]}: expected {name}=VALUE\n")
    assert play.calls() == []


def test_help_prints_the_flags_and_touches_nothing(quickstart, checkout, play):
    run = _make_run(checkout)
    printed, _ = quickstart.run("--help")
    assert "--out=FOLDER" in printed and "set -euo" not in printed
    assert play.calls() == []  # nothing is installed either
    _, calls = quickstart.run("--help-config")
    assert calls == [f"{TRAIN} --config=configs/toy.py --help-config"]
    assert (run / "summary.json").exists()


def test_an_earlier_run_is_kept(quickstart, checkout):
    run = _make_run(checkout)
    printed, _ = quickstart.run()
    (kept,) = checkout.glob("runs/quickstart-*/summary.json")
    assert f"Keeping the earlier run as {kept.parent.relative_to(checkout)}" in printed
    assert not run.exists()


def test_a_mistake_leaves_the_earlier_run_where_it_is(quickstart, checkout, play):
    """The trainer refuses a flag, a field or a missing file before it makes the folder."""
    run = _make_run(checkout)
    play.fake_python("[[ $2 != spo_jax.train ]] || { echo 'error: unknown flag' >&2; exit 2; }")
    done = quickstart.try_to("--config.sed=1")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: unknown flag",
        "Nothing was trained, so runs/quickstart is the earlier run again",
    ]
    assert (run / "summary.json").exists()
    assert [path.name for path in (checkout / "runs").iterdir()] == ["quickstart"]


@pytest.mark.parametrize("status", [75, 130], ids=["SIGTERM", "Ctrl-C"])
def test_after_a_signal_the_script_says_how_it_continues(status, quickstart, checkout, play):
    """The trainer prints its own command, which needs the environment that the script activates."""
    play.fake_python(
        f"[[ $2 != spo_jax.train ]] || {{ mkdir -p {checkout}/runs/quickstart/checkpoints; exit {status}; }}"
    )
    for flags in (["--config.seed=1"], ["--config.seed=1", "--resume"]):
        done = quickstart.try_to(*flags)
        assert (done.returncode, done.stderr) == (status, "or: bash launch/quickstart.sh --config.seed=1 --resume\n")


def test_a_run_that_began_and_failed_keeps_its_folder(quickstart, checkout, play):
    _make_run(checkout)
    play.fake_python(f"[[ $2 != spo_jax.train ]] || {{ mkdir {checkout}/runs/quickstart; exit 1; }}")
    assert quickstart.try_to().returncode == 1
    assert len(list(checkout.glob("runs/quickstart-*/summary.json"))) == 1
    assert not (checkout / "runs" / "quickstart" / "summary.json").exists()


@pytest.mark.parametrize("flag", ["--resume", "--resume-with-changes", "--auto-resume"])
def test_a_run_that_is_resumed_stays_in_its_folder(flag, quickstart, checkout):
    run = _make_run(checkout)
    quickstart.run(flag)
    assert (run / "summary.json").exists()
    assert [path.name for path in (checkout / "runs").iterdir()] == ["quickstart"]


def _make_run(checkout: Path, name: str = "quickstart") -> Path:
    run = checkout / "runs" / name
    run.mkdir(parents=True)
    (run / "summary.json").touch()
    return run


@pytest.mark.parametrize("flag", ["--resum", "--ouT=runs/x", "--prompt=a"])
def test_a_flag_that_does_not_exist_is_refused_before_anything_is_installed(quickstart, play, flag):
    done = quickstart.try_to(flag)
    assert done.returncode == 2 and not play.calls() and not done.stdout
    assert done.stderr.startswith(
        f"error: unknown flag {flag.partition('=')[0]}: expected --out, --config, --config.FIELD,"
    )


def test_it_knows_all_flags_of_the_command():
    script = (ROOT / "launch" / "quickstart.sh").read_text()
    known = {*re.search(r'^TRAIN_FLAGS="(.*)"$', script, re.M)[1].split("|"), "out"}
    assert known == set(re.findall(r'flags\.DEFINE_\w+\(\s*"([\w-]+)"', (ROOT / "spo_jax" / "train.py").read_text()))
