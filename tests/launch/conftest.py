"""A copy of the checkout, stand-ins for what the launch scripts drive, and the manifest's parts."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("gcloud", "srun", "scontrol", "sbatch", "kubectl", "nvidia-smi", "pip", "tar", "sudo", "ssh")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what the scripts look at, so that what they leave behind can be seen."""
    folder = tmp_path / "checkout"
    for name in ("launch", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", folder)
    return folder


@pytest.fixture
def play(tmp_path, checkout) -> SimpleNamespace:
    """``run(script, *arguments)`` in the copy, where stand-ins come before the real tools; ``calls()`` is their log.

    A stand-in writes down its call and, unless a test replaces it, fails.
    """
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    log.touch()

    def stand_in(name: str, body: str = "exit 99") -> None:
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{log}"\n{body}\n')
        path.chmod(0o755)

    for tool in TOOLS:
        stand_in(tool)
    theirs = ("SLURM_", "JAX_", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    environment |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}

    def run(script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        line = ["bash", str(checkout / "launch" / script), *arguments]
        return subprocess.run(line, cwd="/", env=environment | more, capture_output=True, text=True, timeout=300)

    calls = lambda: log.read_text().splitlines()  # noqa: E731
    return SimpleNamespace(run=run, stand_in=stand_in, calls=calls, environment=environment, folder=tmp_path)


@pytest.fixture(scope="session")
def manifest() -> SimpleNamespace:
    """The JobSet, its job's spec, the pods' spec and their container."""
    text = (ROOT / "launch" / "gke_jobset.yaml").read_text(encoding="utf-8")
    jobset = yaml.safe_load(text)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return SimpleNamespace(jobset=jobset, job=job, pod=pod, container=container)
