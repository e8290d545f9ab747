"""Fixtures: a copy of the checkout, stand-ins for the programs that the launch scripts call, and the manifest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("gcloud", "srun", "scontrol", "sbatch", "kubectl", "nvidia-smi", "pip", "tar", "sudo", "ssh")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Returns a copy of the files that the scripts use, in which every file that they write can be seen."""
    folder = tmp_path / "checkout"
    for name in ("launch", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", folder)
    return folder


@pytest.fixture
def play(tmp_path, checkout) -> SimpleNamespace:
    """Runs scripts in the copy of the checkout, with stand-ins in place of the real tools.

    ``run(script, *arguments)`` runs a script, and ``calls()`` lists the calls of stand-ins. A stand-in logs its call
    and then fails, unless a test replaces it with ``stand_in(name, body)``.
    """
    folder = tmp_path / "bin"
    log = tmp_path / "calls"
    folder.mkdir()
    log.touch()

    def stand_in(name: str, body: str = "exit 99") -> None:
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{log}"\n{body}\n')
        path.chmod(0o755)

    def fake_python(body: str) -> None:
        """Replaces ``python -m …`` with ``body`` (bash); other calls of Python go to the real one."""
        stand_in("python", f'case $1 in -m) {body} ;; *) exec "{sys.executable}" "$@" ;; esac')

    for tool in TOOLS:
        stand_in(tool)
    theirs = ("SLURM_", "JAX_", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    environment |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}

    def run(script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        line = ["bash", str(checkout / "launch" / script), *arguments]
        return subprocess.run(line, cwd="/", env=environment | more, capture_output=True, text=True, timeout=300)

    def calls() -> list[str]:
        return log.read_text().splitlines()

    return SimpleNamespace(
        run=run,
        stand_in=stand_in,
        fake_python=fake_python,
        calls=calls,
        environment=environment,
        folder=tmp_path,
    )


@pytest.fixture(scope="session")
def manifest() -> SimpleNamespace:
    """Returns the JobSet, the spec of its job, the spec of the pods, and their container."""
    text = (ROOT / "launch" / "gke_jobset.yaml").read_text(encoding="utf-8")
    jobset = yaml.safe_load(text)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return SimpleNamespace(jobset=jobset, job=job, pod=pod, container=container)
