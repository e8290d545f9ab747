"""Accelerators that the system shows, whether jax can use them or not."""

import os
import shutil
from pathlib import Path

from spo_jax.run.diagnosis.rule import Finding
from spo_jax.work.doctor.extras import EXTRAS, pip_line

# Variables that machines with TPUs have, and others have not.
_TPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID", "TPU_NAME", "COLAB_TPU_ADDR", "CLOUD_TPU_TASK_ID")
_GOOGLE = "0x1ae0"  # vendor of TPUs on the PCI bus, which makes other devices as well


def present(root: Path = Path("/")) -> dict[str, str]:
    """Returns the extra for each kind of accelerator that is there, and the sign of it: ``gpu``, ``tpu``.

    Args:
      root: root of the file system, for tests.
    """
    found = {}
    gpus = sorted((root / "dev").glob("nvidia[0-9]*"))
    if gpus:
        found["gpu"] = f"/dev/{gpus[0].name}"
    elif shutil.which("nvidia-smi"):
        found["gpu"] = "nvidia-smi"
    chips = sorted((root / "dev").glob("accel[0-9]*")) or sorted((root / "dev/accel").glob("accel[0-9]*"))
    variable = next((name for name in _TPU_VARIABLES if os.environ.get(name)), "")
    groups = sorted((root / "dev/vfio").glob("[0-9]*"))
    if chips and (variable or _has_google_device(root)):
        found["tpu"] = f"/dev/{chips[0].name}"
    elif groups and (variable or _has_google_device(root)):
        found["tpu"] = f"/dev/vfio/{groups[0].name}"
    elif variable:
        found["tpu"] = f"the variable {variable}"
    return found


def _has_google_device(root: Path) -> bool:
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    return any(file.read_text(errors="replace").strip() == _GOOGLE for file in vendors)


def unused(platforms: set[str], root: Path = Path("/")) -> list[Finding]:
    """Says which accelerators are there and are not used.

    Args:
      platforms: platforms of jax's devices: ``cpu``, ``gpu``, ``tpu``.
      root: root of the file system, for tests.
    """
    findings = []
    for extra, sign in present(root).items():
        if extra in platforms:
            continue
        name = {"gpu": "an NVIDIA GPU", "tpu": "a TPU"}[extra]
        wanted = os.environ.get("JAX_PLATFORMS")
        if EXTRAS[extra].missing:
            text = f"There seems to be {name} ({sign}), but jax's plugin for it is not installed."
            findings.append(Finding("problem", text, pip_line(extra)))
        elif wanted and not {"gpu": {"cuda", "gpu"}, "tpu": {"tpu"}}[extra] & set(wanted.split(",")):
            text = f"There seems to be {name} ({sign}), which JAX_PLATFORMS={wanted} leaves unused."
            findings.append(Finding("note", text, "unset JAX_PLATFORMS to use it"))
        else:
            text = f"There seems to be {name} ({sign}), but jax does not find it."
            findings.append(
                Finding("problem", text, "See what jax says: python -c 'import jax; print(jax.devices())'; mostly the "
                        "driver is too old for the plugin, or another process holds the device")
            )  # fmt: skip
    return findings
