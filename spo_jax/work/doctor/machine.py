"""What this machine has: versions, devices and memory, disk, caches, extras and variables."""

import contextlib
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

import spo_jax
from spo_jax.core.compiled_programs import DEFAULT_FOLDER
from spo_jax.core.memory import GIB
from spo_jax.core.words import counted, size
from spo_jax.run.diagnosis.rule import Finding
from spo_jax.run.versions import library_versions
from spo_jax.work.doctor.accelerators import unused
from spo_jax.work.doctor.extras import EXTRAS, pip_line, unmet
from spo_jax.work.doctor.section import Section

# A run of SD 1.5 reads 8 GB of weights from the hub and keeps three checkpoints, samples and a report.
_LITTLE_DISK = 10 * GIB
# What importing jax and compiling the toy takes; with less, the first run may be killed.
_LITTLE_MEMORY = 2 * GIB
# The limit and the use of a container's memory, and the name of that part of it which are files that can be read again,
# in the second and in the first version of Linux' control groups.
_CONTAINER = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
_VARIABLES = (
    "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT",
    "SPO_JAX_ATTENTION", "WANDB_MODE",
)  # fmt: skip


def examine_machine() -> list[Section]:
    """Looks at everything that a run needs; starts the devices, without taking their memory."""
    environment = _environment()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a run beside this one needs the memory
    return [_versions(), _devices(), _storage(), _extras(), environment]


def _versions() -> Section:
    versions = library_versions()
    versions["spo_jax"] = f"{spo_jax.__version__} in {Path(spo_jax.__file__).parent}"
    findings = [Finding("problem", f"{text}.", "pip install -U spo_jax, or its requirement alone") for text in unmet()]
    return Section("versions", "Versions", versions, findings, versions)


# Devices


def _devices() -> Section:
    facts = {"system": f"{platform.system()} {platform.release()}, {platform.machine()}, {counted(_cores(), 'core')}"}
    total, free = host_memory()
    facts["memory of the host"] = f"{size(free)} free of {size(total)}" if total else "not known"
    data: dict[str, Any] = {"cores": _cores(), "host_bytes": total, "host_free_bytes": free, "devices": []}
    findings = []
    if total and free < _LITTLE_MEMORY:
        findings.append(Finding("problem", f"Only {size(free)} of memory are free.", "End other programs."))
    platforms: set[str] = set()
    try:
        import jax  # here, because its parts may not fit each other

        devices = jax.local_devices()
    except Exception as error:  # plugins raise what they like
        reason = " ".join(str(error).split())[:300]
        findings.append(Finding("problem", f"jax starts no device: {reason}", "Check JAX_PLATFORMS and the plugin."))
        devices = []
    for device in devices:
        platforms.add(device.platform)
        facts[f"device {device.id}"] = _device(device, data["devices"])
    if devices:
        findings += unused(platforms)
    if platforms == {"cpu"}:
        text = "Only the CPU is used: the toy runs in minutes, SD 1.5 would take weeks."
        findings.append(Finding("note", text, "See launch/README.md for machines with accelerators."))
    elif not findings:
        findings.append(Finding("good", "The accelerator can be used."))
    return Section("devices", "Devices", facts, findings, data)


def _device(device: Any, found: list[dict[str, Any]]) -> str:
    total, free = device_memory(device)
    found.append({"kind": device.device_kind, "platform": device.platform, "bytes": total, "free_bytes": free})
    memory = f", {size(free)} free of {size(total)}" if total else ", in the memory of the host"
    return f"{device.device_kind} ({device.platform}){memory}"


def device_memory(device: Any) -> tuple[int, int]:
    """Returns the memory of a device and what is free of it, in bytes; zeros if it does not say."""
    stats = device.memory_stats() or {}
    total = stats.get("bytes_limit", 0)
    return total, total - stats.get("bytes_in_use", 0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Returns the memory of the host, or of the container, and what is free of it, in bytes; zeros if nothing says it.

    Args:
      root: root of the file system, for tests.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return 0, 0
    known = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    total, free = known["MemTotal"], known.get("MemAvailable", known["MemFree"])
    group = root / "sys/fs/cgroup"
    for limit, used, parts, cached in _CONTAINER:
        try:
            most, now = (int((group / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # none, or "max"
            continue
        with contextlib.suppress(OSError):
            lines = (group / parts).read_text().splitlines()
            now -= sum(int(count) for name, count in map(str.split, lines) if name == cached)
        if most < total:
            total, free = most, min(free, most - now)
    return total, max(free, 0)


# Storage


def _storage() -> Section:
    disk = shutil.disk_usage(".")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path(DEFAULT_FOLDER).expanduser()))
    programs, total = _compiled(Path(folder)) if folder else (0, 0)
    facts = {"this folder": f"{Path.cwd()}: {size(disk.free)} free of {size(disk.total)}"}
    if folder:
        facts["compiled programs"] = f"{folder}: {counted(programs, 'program')}, {size(total)}"
    else:
        facts["compiled programs"] = "not kept (JAX_COMPILATION_CACHE_DIR is empty)"
    findings = []
    if disk.free < _LITTLE_DISK:
        text = f"Only {size(disk.free)} are free here; SD 1.5 with its judge takes {size(_LITTLE_DISK)}."
        findings.append(Finding("note", text, "Use another disk: --out for the run, HF_HOME for what is fetched."))
    if not os.access(".", os.W_OK):
        findings.append(Finding("note", "Nothing can be written in this folder.", "Give commands an --out elsewhere."))
    data = {
        "folder": str(Path.cwd()), "disk_bytes": disk.total, "disk_free_bytes": disk.free,
        "compilation_cache": folder, "compiled_programs": programs, "compilation_cache_bytes": total,
    }  # fmt: skip
    return Section("storage", "Storage", facts, findings, data)


def _compiled(folder: Path) -> tuple[int, int]:
    """Counts compiled programs and their bytes; jax keeps each in a file, beside one with the time of its last use."""
    programs = total = 0
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.is_file() and not path.name.endswith("-atime"):
            programs += 1
            total += path.stat().st_size
    return programs, total


# Extras and variables


def _extras() -> Section:
    facts, data = {}, {}
    for name, extra in EXTRAS.items():
        missing = [one.partition("|")[0] for one in extra.missing]
        how = f"not installed ({', '.join(missing)}): {pip_line(name)}" if missing else "installed"
        facts[name] = f"{how} – {extra.purpose}"
        data[name] = {"installed": not missing, "missing": missing, "install": pip_line(name) if missing else None}
    return Section("extras", "Extras", facts, [], data)


def _environment() -> Section:
    facts = {name: os.environ[name] or "set, and empty" for name in _VARIABLES if name in os.environ}
    has_token = get_token() is not None
    facts["token of the hub"] = "present" if has_token else "none, so only public models can be fetched"
    data = {name: os.environ[name] for name in _VARIABLES if name in os.environ} | {"hub_token": has_token}
    return Section("environment", "Environment", facts, [], data)
