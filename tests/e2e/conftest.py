"""One run of the training command, and the means to give commands as a user does."""

import dataclasses
import functools
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.commands import ROOT, Commands, command_line


@pytest.fixture(scope="session")
def commands() -> Commands:
    """The package's commands; they share the compiled programs of the tests, and therefore have as many devices."""
    cache = jax.config.jax_compilation_cache_dir
    settings = {
        "JAX_NUM_CPU_DEVICES": str(jax.config.jax_num_cpu_devices),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return Commands(settings | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}))


@pytest.fixture(scope="session")
def command(commands) -> Callable[..., subprocess.CompletedProcess]:
    """Runs ``python -m spo_jax.NAME ARGUMENTS`` in the repository, in a fork; gives the finished process."""
    return commands.fork


@pytest.fixture
def in_processes(tmp_path) -> Callable[..., None]:
    """Runs ``python -m spo_jax.NAME ARGUMENTS`` in several processes over loopback, a device each; all succeed."""
    # Not the tests' programs: those are for as many devices as they have.
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
def write_config(tmp_path_factory) -> Callable[[Any], Path]:
    """Writes settings as a user's config file."""

    def write(settings: Any) -> Path:
        path = tmp_path_factory.mktemp("config") / "tiny_settings.py"
        text = f"    return ConfigDict({dataclasses.asdict(settings)})\n"
        path.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n{text}")
        return path

    return write


@pytest.fixture(scope="session")
def config_file(tiny_settings, write_config) -> Path:
    """`tiny_settings` as a user's config file."""
    return write_config(tiny_settings)


@pytest.fixture(scope="session")
def spm_settings(tmp_path_factory) -> Any:
    """A preference model's run of seconds on pairs of the embedded world: 10, so that batches of 4 cross epochs."""
    from spo_jax import preparing
    from spo_jax.methods.spm.settings import LoadingSettings, SPMEvalSettings, SPMLogSettings, SPMTrainSettings
    from spo_jax.parallel.mesh import MeshSettings

    data = tmp_path_factory.mktemp("data")
    preparing.prepare(preparing.scenes_source(10, 6, 0), data)
    return SPMTrainSettings(
        init_random=True,
        data_dir=str(data),
        batch_size=4,
        chunk=4,
        num_steps=5,
        warmup_steps=1,
        learning_rate=1e-2,
        weight_decay=0.01,
        mesh=MeshSettings(data=1),
        loading=LoadingSettings(threads=1),
        log=SPMLogSettings(checkpoint_every=3, eval_every=4),
        eval=SPMEvalSettings(timesteps=(0, 501), batch=4),
    )


@pytest.fixture(scope="session")
def spm_config_file(spm_settings, write_config) -> Path:
    """`spm_settings` as a user's config file."""
    return write_config(spm_settings)


@pytest.fixture(scope="session")
def run_folder(commands, config_file, tmp_path_factory) -> Path:
    """What three batches of ``python -m spo_jax.train`` leave behind, started as a user does; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    process = commands.start("train", f"--config={config_file}", f"--out={out}")
    assert process.returncode == 0, process.stderr[-4000:]
    (out / "stdout.txt").write_text(process.stdout)
    (out / "stderr.txt").write_text(process.stderr)
    return out
