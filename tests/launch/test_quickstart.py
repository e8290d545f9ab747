"""The quickstart gives the right commands to a stand-in for Python, which installs and trains nothing."""

from pathlib import Path
from types import SimpleNamespace

import pytest

TRAIN = "python -m spo_jax.train"


@pytest.fixture
def quickstart(play) -> SimpleNamespace:
    """Returns ``run(*flags)``, which returns the standard output and the commands that were given to Python."""
    play.fake_python("exit 0")
    environment = play.folder / "venv"
    environment.mkdir()

    def run(*flags: str) -> tuple[str, list[str]]:
        before = len(play.calls())
        done = play.run("quickstart.sh", *flags, VIRTUAL_ENV=str(environment))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout, [call for call in play.calls()[before:] if call.startswith("python -m spo_jax")]

    return SimpleNamespace(run=run)


def test_the_quickstart_trains_the_toy_and_names_its_results(quickstart):
    printed, calls = quickstart.run("--config.seed=1")
    assert calls == [f"{TRAIN} --config=configs/toy.py --config.seed=1 --out=runs/quickstart"]
    last = printed[printed.index("Done.") :]
    for name in ("report.html", "before_after.png", "lora.safetensors", "summary.json"):
        assert f"runs/quickstart/{name}" in last


@pytest.mark.parametrize("config", ["configs/toy_sdxl.py", "toy_sdxl"])
def test_the_quickstart_builds_the_toy_sdxl_only_once(config, quickstart, checkout):
    train = f"{TRAIN} --config={config} --out=runs/quickstart"
    _, calls = quickstart.run(f"--config={config}")
    assert calls == ["python -m spo_jax.build_toy.toy_sdxl --out=build/toy_sdxl", train]
    (checkout / "build" / "toy_sdxl").mkdir(parents=True)
    _, calls = quickstart.run(f"--config={config}")
    assert calls == [train]


def test_an_earlier_run_is_kept(quickstart, checkout):
    run = _make_run(checkout)
    printed, _ = quickstart.run()
    (kept,) = checkout.glob("runs/quickstart-*/summary.json")
    assert f"Keeping the earlier run as {kept.parent.relative_to(checkout)}" in printed
    assert not run.exists()


@pytest.mark.parametrize("flag", ["--resume", "--resume-with-changes", "--auto-resume"])
def test_a_run_that_is_resumed_stays_in_its_folder(flag, quickstart, checkout):
    run = _make_run(checkout)
    quickstart.run(flag)
    assert (run / "summary.json").exists()
    assert [path.name for path in (checkout / "runs").iterdir()] == ["quickstart"]


def _make_run(checkout: Path) -> Path:
    run = checkout / "runs" / "quickstart"
    run.mkdir(parents=True)
    (run / "summary.json").touch()
    return run
