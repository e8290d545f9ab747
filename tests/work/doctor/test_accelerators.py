"""Accelerators and memory as the system shows them, on a made-up file system."""

import pytest

from spo_jax.work.doctor import accelerators, extras
from spo_jax.work.doctor.machine import host_memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes files below a root; no variable of a TPU machine is set, and there is no nvidia-smi."""
    for name in (*accelerators._TPU_VARIABLES, "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(accelerators.shutil, "which", lambda name: None)
    monkeypatch.setattr(extras, "has_module", lambda name: False)

    def make(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_a_machine_without_accelerators(machine):
    assert accelerators.unused({"cpu"}, machine(dev__null="")) == []


def test_a_gpu_without_its_plugin(machine):
    (found,) = accelerators.unused({"cpu"}, machine(dev__nvidia0=""))
    assert found.level == "problem" and "an NVIDIA GPU (/dev/nvidia0), but jax's plugin for it is not" in found.text
    assert "[gpu]" in found.advice
    assert accelerators.unused({"gpu"}, machine(dev__nvidia0="")) == []


def test_a_gpu_that_is_left_unused(machine, monkeypatch):
    monkeypatch.setattr(extras, "has_module", lambda name: True)
    (found,) = accelerators.unused({"cpu"}, machine(dev__nvidia0=""))
    assert found.level == "problem" and "jax does not find it" in found.text
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (found,) = accelerators.unused({"cpu"}, machine(dev__nvidia0=""))
    assert found.level == "note" and "JAX_PLATFORMS=cpu leaves unused" in found.text


def test_tpus(machine, monkeypatch):
    """Files in /dev/vfio alone may be of any device that is passed through."""
    assert accelerators.present(machine(dev__vfio__0="")) == {}
    root = machine(dev__vfio__0="", **{"sys__bus__pci__devices__00:04__vendor": "0x1ae0\n"})
    assert accelerators.present(root) == {"tpu": "/dev/vfio/0"}
    assert accelerators.present(machine(dev__accel0="")) == {"tpu": "/dev/accel0"}
    (found,) = accelerators.unused({"cpu"}, root)
    assert "a TPU" in found.text and "[tpu]" in found.advice


def test_the_memory_of_a_container(machine):
    info = "MemTotal: 8000 kB\nMemFree: 1000 kB\nMemAvailable: 4000 kB\n"
    assert host_memory(machine(proc__meminfo=info, sys__fs__cgroup__memory__max="max")) == (8000 * 1024, 4000 * 1024)
    files = {"sys/fs/cgroup/memory.max": "2048000", "sys/fs/cgroup/memory.current": "1024000"}
    root = machine(proc__meminfo=info, **{name.replace("/", "__"): text for name, text in files.items()})
    assert host_memory(root) == (2048000, 1024000)
    # What files take of it is given back when programs need it.
    (root / "sys/fs/cgroup/memory.stat").write_text("anon 24000\ninactive_file 1000000\n")
    assert host_memory(root) == (2048000, 2024000)
    assert host_memory(root / "absent") == (0, 0)
