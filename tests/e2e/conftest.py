"""Micro models, runs of the training command on them, and the means to run commands as a user does."""

import dataclasses
import fcntl
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from spo_jax.methods.common.preference.settings import AccuracySettings
from spo_jax.methods.common.settings import EvalSettings, JudgeSettings, LoadingSettings, OptimizerSettings
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.parallel.mesh import MeshSettings
from spo_jax.prepare import prepare
from spo_jax.run.settings import LogSettings
from tests.e2e.micro import write_micro, write_micro_sdxl, write_micro_spm
from tests.support.commands import ROOT, Commands, command_line


@pytest.fixture(scope="session")
def commands() -> Commands:
    """The package's commands; they share the tests' compiled programs, and therefore have as many devices."""
    cache = jax.config.jax_compilation_cache_dir
    settings = {
        "JAX_NUM_CPU_DEVICES": str(jax.config.jax_num_cpu_devices),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return Commands(settings | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}))


@pytest.fixture(scope="session")
def command(commands) -> Callable[..., subprocess.CompletedProcess]:
    """Runs ``python -m spo_jax.NAME ARGUMENTS`` in the repository, in a fork; returns the finished process."""
    return commands.fork


@pytest.fixture(scope="session")
def succeed(command) -> Callable[..., subprocess.CompletedProcess]:
    """The same for a command that has to succeed, without a warning."""

    def run(name: str, *arguments: Any, **how: Any) -> subprocess.CompletedProcess:
        process = command(name, *arguments, **how)
        assert process.returncode == 0, process.stderr[-4000:]
        assert "Traceback" not in process.stderr and "Warning" not in process.stderr
        return process

    return run


@pytest.fixture
def in_processes(tmp_path) -> Callable[..., None]:
    """Runs ``python -m spo_jax.NAME ARGUMENTS`` in several processes over loopback, a device each; all succeed."""
    # A cache of its own: the tests' programs are for as many devices as the tests have.
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}

    def run(count: int, name: str, *arguments: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            together = [f"--coordinator-address=127.0.0.1:{free.getsockname()[1]}", f"--num-processes={count}"]
        line = command_line(name, *arguments)
        lines = [[*line, *together, f"--process-id={index}"] for index in range(count)] if count > 1 else [line]
        start = functools.partial(subprocess.Popen, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for process in [start(line) for line in lines]:
            assert process.wait(timeout=600) == 0, process.stderr.read()[-4000:]

    return run


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """Makes a folder once for all processes of a test session: the first one that asks makes it, others wait."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def make(name: str, write: Callable[[Path], Any]) -> Path:
        path = folder / f"once-{name}"
        finished = folder / f"once-{name}.finished"
        with (folder / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                shutil.rmtree(path, ignore_errors=True)
                write(path)
                finished.touch()
        return path

    return make


@pytest.fixture(scope="session")
def micro(once) -> SimpleNamespace:
    """Folders of micro models (see `tests/e2e/micro.py`): pipelines ``sd``, ``sdxl``, judges ``spm``, ``spm_sdxl``."""
    return SimpleNamespace(
        sd=once("sd", write_micro),
        sdxl=once("sdxl", write_micro_sdxl),
        spm=once("spm", write_micro_spm),
        spm_sdxl=once("spm_sdxl", lambda folder: write_micro_spm(folder, "sdxl")),
    )


@pytest.fixture(scope="session")
def write_config(tmp_path_factory) -> Callable[[Any], Path]:
    """Writes settings as a user's config file."""

    def write(settings: Any) -> Path:
        path = tmp_path_factory.mktemp("config") / "own_settings.py"
        text = f"    return ConfigDict({dataclasses.asdict(settings)})\n"
        path.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n{text}")
        return path

    return write


# Runs of SPO


@pytest.fixture(scope="session")
def micro_settings(micro) -> SPOTrainSettings:
    """Three batches of two prompts, two pools and two training batches each; every pair is valid."""
    return SPOTrainSettings(
        model=str(micro.sd),
        prompts_per_batch=2,
        max_batches=3,
        mesh=MeshSettings(data=1),
        spm=JudgeSettings(model=str(micro.spm)),
        spo=SPOSettings(
            num_steps=3,
            divert_start_step=1,
            num_candidates=2,
            threshold=0.0,
            decode_chunk=4,
            train_batch_size=2,
        ),
        optimizer=OptimizerSettings(learning_rate=1e-2),  # so that a few steps are visible in the images
        log=LogSettings(eval_every=2, checkpoint_every=2),
        eval=EvalSettings(images=2, batch=2, steps=2, grid_images=2, rewards="spm"),
    )


@pytest.fixture(scope="session")
def micro_config(micro_settings, write_config) -> Path:
    """`micro_settings` as a user's config file."""
    return write_config(micro_settings)


@pytest.fixture(scope="session")
def micro_run(succeed, once, micro_config) -> Path:
    """The folder of a finished run with `micro_settings`; tests only read it."""
    return once("run", lambda out: succeed("train", f"--config={micro_config}", f"--out={out}"))


# Runs that train a preference model


@pytest.fixture(scope="session")
def spm_settings(once, micro) -> SPMTrainSettings:
    """Five steps from random weights on 10 pairs of the toy world, so that batches of 4 cross epochs."""
    data = once("pairs", lambda folder: prepare("toy", folder, pairs=10, held_out_pairs=6, seed=0))
    return SPMTrainSettings(
        model=str(micro.sd),
        init=str(micro.spm),
        init_random=True,
        data_dir=str(data),
        batch_size=4,
        chunk=4,
        train_steps=5,
        optimizer=OptimizerSettings(learning_rate=1e-2, schedule="linear", warmup_steps=1, weight_decay=0.01),
        mesh=MeshSettings(data=1),
        loading=LoadingSettings(threads=1),
        log=LogSettings(checkpoint_every=3, eval_every=4),
        eval=AccuracySettings(timesteps=(0, 501), batch=4),
    )


@pytest.fixture(scope="session")
def spm_config(spm_settings, write_config) -> Path:
    """`spm_settings` as a user's config file."""
    return write_config(spm_settings)
